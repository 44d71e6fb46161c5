import math

import pytest

from cnx.callback.spacing import Cost, Spacing

FREE = Spacing(every=400, gain_every=50, budget=None)
TIGHT = Spacing(every=400, gain_every=50, budget=0.1)


def probes(spacing: Spacing, gains: dict[int, float], steps: int, cost: Cost | None) -> list[int]:
    """The steps that a run with this curve of control gain is probed at."""
    probed: list[int] = []
    for step in gains:
        seen = {at: gain for at, gain in gains.items() if at <= step}
        regular = step % spacing.every == 0 and step % spacing.stride(steps, cost) == 0
        asked = bool(probed) and spacing.asks_for_one_between(seen, probed)
        if step in (0, steps) or regular or (asked and spacing.affords_one_between(steps, cost, probed)):
            probed.append(step)
    return probed


def rise(at: int, steps: int = 4000, height: float = 0.3) -> dict[int, float]:
    """Noise of 0.001 around 0, and from step `at` on a rise to `height`."""
    return {
        step: 0.001 * math.sin(step) + (height * (1 - math.exp((at - step) / 500)) if step > at else 0.0)
        for step in range(0, steps + 1, 50)
    }


def test_on_the_plateau_there_are_only_the_regular_probes() -> None:
    assert probes(FREE, rise(at=9999), 4000, None) == list(range(0, 4001, 400))


def test_probes_thicken_where_control_gain_rises_and_thin_out_again() -> None:
    probed = probes(FREE, rise(at=1010), 4000, None)
    between = [step for step in probed if step % 400]
    assert set(range(0, 4001, 400)) <= set(probed)
    assert between[0] == 1050, "the first control gain off the plateau is probed at once"
    assert all(b - a >= 50 for a, b in zip(between, between[1:], strict=False)) and max(between) < 3000
    # Between two probes control gain grows by no more than the factor and what one more measurement brings.
    gains = rise(at=1010)
    for a, b in zip(probed, probed[1:], strict=False):
        if a > 1010 and b - a > 50:
            assert gains[b - 50] <= 1.25 * gains[a] + 0.001


def test_the_size_of_control_gain_does_not_matter() -> None:
    small, large = (probes(FREE, rise(at=1000, height=height), 4000, None) for height in (0.2, 0.6))
    assert len(small) == pytest.approx(len(large), abs=2)


def test_adaptive_off_means_regular_probes_only() -> None:
    spacing = Spacing(every=400, gain_every=50, adaptive=False, budget=None)
    assert probes(spacing, rise(at=1000), 4000, None) == list(range(0, 4001, 400))


@pytest.mark.parametrize("probe", [1, 5, 12, 25, 40, 70, 150, 1000])
def test_watching_stays_within_its_share_of_the_time(probe: float) -> None:
    cost = Cost(probe=probe, gain=probe / 100)
    probed = probes(TIGHT, rise(at=1000), 4000, cost)
    watching = (len(probed) - 2) * cost.probe + 80 * cost.gain
    assert probed[0] == 0 and probed[-1] == 4000, "the first and the last are made in any case, and beside the budget"
    assert watching / (4000 + watching) <= 0.1 or probed == [0, 4000]
    if probe <= 5:
        assert probed == probes(FREE, rise(at=1000), 4000, None), "nothing is left out that could be paid for"
    # Nor is it stingy: with one more probe at all multiples of a lesser stride, it would be too dear.
    stride = TIGHT.stride(4000, cost)
    if stride > 400:
        more = 3999 // (stride - 400) * cost.probe + 80 * cost.gain
        assert more / (4000 + more) > 0.1


def test_over_budget_every_run_of_that_length_leaves_out_the_same_regular_probes() -> None:
    dear = Cost(probe=60, gain=0.6)
    early, late = (probes(TIGHT, rise(at=at), 4000, dear) for at in (500, 3000))
    regular = [[step for step in probed if step % TIGHT.stride(4000, dear) == 0] for probed in (early, late)]
    assert regular[0] == regular[1] == [0, 800, 1600, 2400, 3200, 4000]


def test_regular_probes_come_before_those_between() -> None:
    for probe in (20.0, 25.0, 30.0):
        cost = Cost(probe=probe, gain=0.5)
        assert set(range(0, 4001, 400)) <= set(probes(TIGHT, rise(at=1000), 4000, cost))
