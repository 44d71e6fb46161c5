"""Key points compared."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment


class Point(NamedTuple):
    """A joint: what it is of, as a number that means the same in both drawings, and where, in pixels.

    `reach`: how far off it may be found, in pixels.
    """

    kind: int
    x: float
    y: float
    reach: float


def match_points(pred: list[Point], true: list[Point]) -> tuple[float, float]:
    """The shares of true points that are found and of predicted points that find one, both in [0, 1].

    A predicted point finds a true one of its kind within the true one's reach, each at most one. The first share is the
    percentage of correct key points (PCK; Yang and Ramanan, TPAMI 2013), as a share. Of no points it is 1.0.
    """
    if not pred or not true:
        return float(not true), float(not pred)
    apart = np.array([[np.hypot(p.x - t.x, p.y - t.y) if p.kind == t.kind else np.inf for p in pred] for t in true])
    near = apart <= np.array([t.reach for t in true])[:, None]
    rows, columns = linear_sum_assignment(~near)  # as many pairs as there can be
    found = int(near[rows, columns].sum())
    return found / len(true), found / len(pred)
