"""When control gain leaves the plateau on which every run begins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median


@dataclass(frozen=True)
class Plateau:
    """Where a curve of control gain begins.

    Attributes:
        end: the index of the first value off the plateau; None while the curve is on it.
        level: the median of the values on it; 0 if there are none.
        threshold: the rise above `level` from which a value is off it, in units of control gain.
    """

    end: int | None
    level: float
    threshold: float


def find_plateau(gains: Sequence[float], sigmas: float = 5.0, least: float = 0.01) -> Plateau:
    """The plateau that a curve of control gain begins on.

    The curve leaves it with the first value that stands above the median of all before it by more than `sigmas` times
    their noise and by more than `least`. Noise is 1.4826 times the median absolute deviation, which estimates the
    standard deviation of normal values and does not mind an outlier, times n / (n - 0.8), since it comes out too small
    for few values (Croux and Rousseeuw 1992, "Time-efficient algorithms for two highly robust estimators of scale",
    section 4): of the values, or of the steps from one to the next over the root of 2 (after von Neumann et al. 1941,
    "The mean square successive difference") from six values on, whichever is less, because a rise that begins with the
    run adds to the first and hardly to the second. Four values make a plateau; NaN is left out.

    Args:
        gains: control gain, in order; at most 1, and 0 where the control changes nothing.
        sigmas: in units of the noise.
        least: in units of control gain.
    """
    values: list[float] = []
    level, threshold = 0.0, least
    for i, gain in enumerate(gains):
        if math.isnan(gain):
            continue
        if len(values) >= 4 and gain - level > threshold:
            return Plateau(i, level, threshold)
        values.append(gain)
        level = median(values)
        noise = _deviation(values)
        if len(values) >= 6:
            noise = min(noise, _deviation([b - a for a, b in pairwise(values)]) / math.sqrt(2))
        threshold = max(least, sigmas * noise)
    return Plateau(None, level, threshold)


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation of normal values, by their median absolute deviation."""
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values) * len(values) / (len(values) - 0.8)
