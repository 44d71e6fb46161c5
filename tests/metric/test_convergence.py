import math
import random

import pytest

from cnx.metric import Convergence, find_convergence

STEPS = [0, 400, 800, 1200, 1600, 2000]


def test_a_sudden_rise() -> None:
    found = find_convergence(STEPS, [0.0, 0.02, 0.1, 0.8, 0.85, 0.9])
    assert found == Convergence(step=1200, before=800, quarter=1200, three_quarters=1200)


def test_a_slow_rise_is_told_by_its_quarters() -> None:
    found = find_convergence(STEPS, [0.0, 0.3, 0.5, 0.6, 0.7, 0.8])
    assert found == Convergence(step=800, before=400, quarter=400, three_quarters=2000)


@pytest.mark.parametrize("dip", [3, 4])
def test_a_rise_that_falls_back_within_two_probes_does_not_count(dip: int) -> None:
    curve = [0.0, 0.1, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    curve[dip] = 0.49
    assert find_convergence(range(8), curve).step == dip + 1


def test_a_fall_after_the_third_probe_does_not_undo_convergence() -> None:
    assert find_convergence(STEPS, [0.1, 0.6, 0.6, 0.6, 0.1, 0.0]).step == 400


def test_two_more_probes_must_exist() -> None:
    assert find_convergence(STEPS, [0.0, 0.1, 0.1, 0.1, 0.9, 0.9]).step is None
    assert find_convergence(STEPS, [0.0, 0.1, 0.1, 0.9, 0.9, 0.9]).step == 1200


def test_a_model_that_obeys_from_the_start_has_no_probe_before() -> None:
    found = find_convergence(STEPS, [0.9] * 6)
    assert (found.step, found.before) == (0, None)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_missing_probes_are_left_out(missing: float | None) -> None:
    found = find_convergence(STEPS, [0.0, missing, 0.6, missing, 0.6, 0.6])
    assert found == Convergence(step=800, before=0, quarter=800, three_quarters=None)
    assert find_convergence(STEPS, [0.0, 0.1, 0.1, 0.6, 0.6, missing]).step is None


def test_nothing_found_in_a_flat_or_an_empty_curve() -> None:
    nothing = Convergence(step=None, before=None, quarter=None, three_quarters=None)
    assert find_convergence(STEPS, [0.01] * 6) == nothing
    assert find_convergence([], []) == nothing


def sigmoid(midpoint: float, width: float, top: float = 0.9) -> list[float]:
    return [top / (1 + math.exp((midpoint - step) / width)) for step in RUN]


RUN = range(0, 5001, 250)
NOISE = random.Random(0)

# Name: (calibrated fidelity at the steps of RUN, convergence step, the probe before it, lost again).
CURVES: dict[str, tuple[list[float], int | None, int | None, int | None]] = {
    "sudden": (sigmoid(2100, 20), 2250, 2000, None),
    "slow": (sigmoid(2600, 700), 3000, 2750, None),
    "never": ([0.01] * 21, None, None, None),
    "noise about 0": ([NOISE.gauss(0, 0.1) for _ in RUN], None, None, None),
    "sudden under noise": ([value + NOISE.gauss(0, 0.05) for value in sigmoid(2100, 20)], 2250, 2000, None),
    "collapse after convergence": ([*sigmoid(2100, 20)[:15], *[0.05] * 6], 2250, 2000, 3750),
    "a dip after convergence": ([*sigmoid(2100, 20)[:15], 0.4, *[0.9] * 5], 2250, 2000, None),
    "plateau below 0.5": (sigmoid(1000, 100, top=0.45), None, None, None),
    "plateau at 0.5": (sigmoid(1000, 20, top=0.5001), 1250, 1000, None),
    "two lone spikes": ([0.9 if step in (1000, 2500) else 0.1 for step in RUN], None, None, None),
    "missing and NaN around the rise": (
        [math.nan if step in (250, 2000, 2500) else value for step, value in zip(RUN, sigmoid(2100, 20), strict=True)],
        2250, 1750, None,
    ),
    "all NaN": ([math.nan] * 21, None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CURVES)
def test_the_verdict_on_curves_as_runs_draw_them(name: str) -> None:
    curve, step, before, lost = CURVES[name]
    for span in (0, 250):  # with regular probes alone the span asks nothing more
        found = find_convergence(RUN, curve, span)
        assert (found.step, found.before, found.lost) == (step, before, lost)


@pytest.mark.parametrize(("width", "quarter", "three_quarters"), [(20, 2250, 2250), (700, 1500, 3250)])
def test_a_sudden_rise_and_a_slow_one_differ_in_their_quarters(width: float, quarter: int, three_quarters: int) -> None:
    found = find_convergence(RUN, sigmoid(2100, width))
    assert (found.quarter, found.three_quarters) == (quarter, three_quarters)


def test_a_spike_before_the_rise_is_not_part_of_it() -> None:
    found = find_convergence(range(7), [0.0, 0.8, 0.0, 0.3, 0.6, 0.7, 0.8])
    assert (found.step, found.quarter, found.three_quarters) == (4, 3, 6)
    never = find_convergence(range(4), [0.0, 0.8, 0.0, 0.3])
    assert (never.step, never.quarter, never.three_quarters) == (None, 1, 1)


def test_what_two_more_probes_would_have_to_confirm_is_named() -> None:
    assert find_convergence(range(5), [0.0, 0.6, 0.4, 0.6, 0.7]).unconfirmed == 3
    assert find_convergence(range(5), [0.0, 0.6, 0.6, 0.6, 0.4]).unconfirmed is None, "it converged, and is lost"
    assert find_convergence(range(5), [0.0, 0.6, 0.4, 0.6, 0.4]).unconfirmed is None
    assert find_convergence([0, 1, 2, 3, 500], [0.0, 0.6, 0.6, 0.6, 0.6], span=500).unconfirmed == 1


def test_probes_between_tighten_the_bracket_and_do_not_confirm_in_a_moment() -> None:
    dense = sorted({*RUN, 2050, 2100, 2150, 2200})
    curve = [0.9 if step > 2060 else 0.1 for step in dense]
    found = find_convergence(dense, curve, span=250)
    assert (found.step, found.before) == (2100, 2050)
    fallen = [0.1 if step >= 2250 else value for step, value in zip(dense, curve, strict=True)]
    assert find_convergence(dense, fallen, span=250).step is None, "2100 to 2200 are four probes, but within a moment"
    assert find_convergence(dense, fallen).step == 2100
    so_far = [step for step in dense if step <= 2250]
    assert find_convergence(so_far, curve[: len(so_far)], span=250).step is None, "150 steps are not yet 250"


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError):
        find_convergence([0, 1], [0.1])
    with pytest.raises(ValueError, match="increase"):
        find_convergence([0, 400, 400], [0.1, 0.2, 0.3])
