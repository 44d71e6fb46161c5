"""Means, and how far they can be trusted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit


class Mean(NamedTuple):
    """A mean of `n` values; its interval is `mean` ± `half`, and `half` is None for a single value."""

    mean: float
    half: float | None
    n: int

    def words(self, form: str) -> str:
        """Like `0.72 [0.68, 0.76]`, each number in the format `form`; without the interval for a single value."""
        mean = format(self.mean, form)
        if self.half is None:
            return mean
        return f"{mean} [{format(self.mean - self.half, form)}, {format(self.mean + self.half, form)}]"


def mean_interval(values: Sequence[float], level: float = 0.95) -> Mean:
    """The mean and its two-sided interval by Student's t distribution, s / √n · t with n − 1 degrees of freedom.

    It takes the values for independent draws of a normal distribution: seeds, or held-out items.
    """
    n = len(values)
    if n < 2:
        return Mean(float(np.mean(values)), None, n)
    t = float(stdtrit(n - 1, (1 + level) / 2))
    return Mean(float(np.mean(values)), t * float(np.std(values, ddof=1)) / math.sqrt(n), n)
