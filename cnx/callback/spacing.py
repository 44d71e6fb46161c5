"""At which optimizer steps a run is probed, within a share of its time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cnx.metric import find_plateau


@dataclass(frozen=True)
class Cost:
    """What watching a run costs, in the time of its optimizer steps.

    Attributes:
        probe: one probe.
        gain: one measurement of control gain.
    """

    probe: float
    gain: float


@dataclass(frozen=True)
class Spacing:
    """Decides at which steps a run is probed: a function of numbers alone, so that it can be repeated.

    The first and the last step always are. Multiples of `every` are *regular*: the same steps in every run, so that
    runs can be compared. Where they would cost more than the budget, only multiples of 2, 3, ... times `every` are
    probed. *Between* them a probe is made when control gain is off its plateau (`cnx.metric.find_plateau`) and its
    rise has grown by the factor `growth` since the last probe: probes are then about equally spaced in the logarithm
    of control gain, whatever its size, so the step at which fidelity passes 0.25, 0.5 or 0.75 is bracketed closely.
    They take what regular probes leave of the budget.

    Attributes:
        every: optimizer steps between regular probes.
        gain_every: optimizer steps between measurements of control gain.
        adaptive: whether there are probes between the regular ones.
        budget: the share of a run's time that may be spent watching it, beside the first and the last probe and what is
            measured once; None is no limit.
        growth: above 1.
    """

    every: int
    gain_every: int
    adaptive: bool = True
    budget: float | None = 0.1
    growth: float = 1.25

    def stride(self, steps: int, cost: Cost | None) -> int:
        """Optimizer steps between regular probes in a run of `steps` steps; more than `steps` if none fits in."""
        most = self._affordable(steps, cost)
        # The least k for which at most so many multiples of k * every lie between the first and the last step.
        return self.every * (1 + int((steps - 1) / self.every / (most + 1)))

    def asks_for_one_between(self, gains: Mapping[int, float], probed: Sequence[int]) -> bool:
        """Whether the last control gain asks for a probe.

        `gains` are control gains by optimizer step, in order, and `probed` the steps of the probes so far.
        """
        values = list(gains.values())
        plateau = find_plateau(values)
        if not self.adaptive or plateau.end is None:
            return False
        rise, rise_before = (value - plateau.level for value in (values[-1], gains[probed[-1]]))
        return rise > max(plateau.threshold, self.growth * rise_before)

    def affords_one_between(self, steps: int, cost: Cost | None, probed: Sequence[int]) -> bool:
        """Whether one more probe fits in beside those between that were made, and all regular ones of `steps` steps."""
        stride = self.stride(steps, cost)
        made = sum(1 for at in probed if 0 < at < steps and at % stride)
        return made + 1 + (steps - 1) // stride <= self._affordable(steps, cost)

    def _affordable(self, steps: int, cost: Cost | None) -> float:
        """How many probes fit in between the first and the last."""
        if self.budget is None or cost is None:
            return math.inf
        # Watching may take budget / (1 - budget) of the time of training, so that it takes `budget` of both together.
        allowed = steps * self.budget / (1 - self.budget)
        return max(0, (allowed - steps / self.gain_every * cost.gain) // cost.probe)
