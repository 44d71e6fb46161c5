"""The learning rate over a run."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from cnx.errors import InputError


def linear(left: float) -> float:
    """Fall in a straight line; `left` goes from 1 to 0."""
    return left


def cosine(left: float) -> float:
    """Fall along half a cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""
    return (1 - math.cos(math.pi * left)) / 2


@dataclass(frozen=True)
class Schedule:
    """Warm-up, a constant rate, and a cooldown to 0: a function of the step alone, without a state of its own.

    So a resumed run may be given more steps than it was begun with. All decay is a cooldown: over none of the run for a
    constant rate, over its last part (Hägele et al., arXiv 2405.18392, section 3), or over all of it after the warm-up.

    Attributes:
        warmup_steps: optimizer steps in which the rate rises in a straight line; the last of them has the whole rate.
        cooldown: share of the run, at its end, in which the rate falls; the warm-up is never part of it.
        decay: the factor for the share of the cooldown that is left, from 1 to 0.

    Raises:
        InputError: a warm-up below 0, or a cooldown outside [0, 1].
    """

    warmup_steps: int = 0
    cooldown: float = 0.0
    decay: Callable[[float], float] = linear

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps={self.warmup_steps}: must be 0 or a number of optimizer steps")
        if not 0 <= self.cooldown <= 1:
            raise InputError(f"cooldown={self.cooldown:g}: must be a share of the run, from 0 to 1")

    def __call__(self, step: int, steps: float) -> float:
        """What the learning rate of optimizer step `step`, from 0, of `steps` is multiplied by.

        Raises InputError for a cooldown of the whole of a run that has no end (`steps` infinite or negative).
        """
        endless = not 0 < steps < math.inf
        if endless and self.cooldown == 1:
            raise InputError("cooldown=1: a rate that falls over the whole run needs its end; give trainer.max_steps")
        factor = 1.0
        share = self.cooldown if endless else min(self.cooldown, 1 - self.warmup_steps / steps)
        if share > 0:
            factor = self.decay(max(0.0, min(1.0, (1 - step / steps) / share)))
        return factor if step >= self.warmup_steps else factor * (step + 1) / self.warmup_steps
