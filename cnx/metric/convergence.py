"""The step at which a model began to obey its control."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Convergence:
    """When control appeared, in optimizer steps; None where it did not.

    Attributes:
        step: the convergence step.
        before: the probe before it; convergence lies in (before, step]. None if the very first probe converged.
        quarter: the first probe at 0.25 or more; where there is a step, of those that lead to it without a fall below.
        three_quarters: the first probe at 0.75 or more, from `quarter` on; the distance between them says how sudden
            control was.
        lost: the probe from which fidelity was below 0.5 again up to the last one; None if it is not.
        unconfirmed: where there is no step, the first of the last probes if these are all at 0.5 or more: too few, or
            too close together, to show that it stays.
    """

    step: int | None
    before: int | None
    quarter: int | None
    three_quarters: int | None
    lost: int | None = None
    unconfirmed: int | None = None


def find_convergence(steps: Sequence[int], calibrated: Sequence[float | None], span: int = 0) -> Convergence:
    """The first probe whose calibrated fidelity is at least 0.5 and stays there for the next two probes.

    Both of those probes must exist: a run that crosses 0.5 at its last probe has not shown that it stays. Where probes
    are dense, as they are where control gain rises, two of them may follow within a moment; so fidelity must stay for
    at least `span` steps too, at every probe in them and at the first after them. With `span` the distance of regular
    probes, those between can put off the verdict on a crossing but not hasten it, and where there are none the verdict
    is that of the two probes alone. None and NaN are probes that were not made: they are left out and neither confirm
    nor refute.

    Args:
        steps: optimizer steps of the probes, strictly increasing.
        calibrated: calibrated control fidelity of each, as `calibrate` gives it.
        span: in optimizer steps.

    Raises:
        ValueError: lengths differ, or steps do not increase.
    """
    if any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
        raise ValueError(f"the steps of probes must increase: {list(steps)}")
    pairs = zip(steps, calibrated, strict=True)
    probes = [(step, value) for step, value in pairs if value is not None and not math.isnan(value)]
    found = next((i for i in range(len(probes)) if _stays(probes[i:], span)), None)
    if found is None:
        closing = _stretch(0.5, probes, len(probes))
        return Convergence(
            step=None,
            before=None,
            quarter=_first_at_least(0.25, probes),
            three_quarters=_first_at_least(0.75, probes),
            unconfirmed=closing[0][0] if closing else None,
        )
    rise = probes.index(_stretch(0.25, probes, found + 1)[0])
    last = max(i for i, (_, value) in enumerate(probes) if value >= 0.5)
    return Convergence(
        step=probes[found][0],
        before=probes[found - 1][0] if found else None,
        quarter=probes[rise][0],
        three_quarters=_first_at_least(0.75, probes[rise:]),
        lost=probes[last + 1][0] if last + 1 < len(probes) else None,
    )


def _stays(probes: list[tuple[int, float]], span: int) -> bool:
    """Whether the first probe is at 0.5 or more and the next ones confirm it."""
    confirmed = next((i for i, (step, _) in enumerate(probes) if i >= 2 and step - probes[0][0] >= span), None)
    return confirmed is not None and all(value >= 0.5 for _, value in probes[: confirmed + 1])


def _stretch(level: float, probes: list[tuple[int, float]], end: int) -> list[tuple[int, float]]:
    """The probes up to number `end`, not included, since the last of them below `level`."""
    return probes[max((i + 1 for i in range(end) if probes[i][1] < level), default=0) : end]


def _first_at_least(level: float, probes: list[tuple[int, float]]) -> int | None:
    return next((step for step, value in probes if value >= level), None)
