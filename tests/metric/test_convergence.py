import math

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


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError):
        find_convergence([0, 1], [0.1])
    with pytest.raises(ValueError, match="increase"):
        find_convergence([0, 400, 400], [0.1, 0.2, 0.3])
