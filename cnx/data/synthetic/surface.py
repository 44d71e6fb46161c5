"""Surfaces of what the scenes show: how far from the viewer each of their points is.

All in the units of the thing itself; image plane positions are x to the right, y down, and distances are less that of
the thing's middle, which is as far away as its size says.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "..."]
RIM = 0.98  # of a radius: beyond it a round surface turns too steeply away to be measured


class Surface(Protocol):
    """A surface that the viewer sees no point of behind another."""

    def away(self, x: Plane, y: Plane) -> Plane:
        """The distance at image plane positions."""
        ...


@dataclass(frozen=True)
class Sheet:
    """A thin thing, bent a little: a quadratic in x and y."""

    weights: tuple[float, ...]

    @classmethod
    def through(cls, points: Float[np.ndarray, "n 3"]) -> Self:
        """The quadratic nearest to points (x, y, distance); kept from bending where they lie nearly in one line."""
        terms = _terms(points[:, 0], points[:, 1])
        damping = len(points) * np.diag([0, 1e-3, 1e-3, 1e-2, 1e-2, 1e-2])
        return cls(tuple(np.linalg.solve(terms.T @ terms + damping, terms.T @ points[:, 2]).tolist()))

    def away(self, x: Plane, y: Plane) -> Plane:
        return _terms(x, y) @ np.array(self.weights)


def _terms(x: Plane, y: Plane) -> Plane:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)


@dataclass(frozen=True)
class Ball:
    """The near half of a sphere around (x, y, distance)."""

    x: float
    y: float
    middle: float
    radius: float

    @classmethod
    def around(cls, point: Float[np.ndarray, "3"], radius: float) -> Self:
        """The sphere around a point (x, y, distance)."""
        x, y, middle = point.tolist()
        return cls(x, y, middle, radius)

    def away(self, x: Plane, y: Plane) -> Plane:
        from_middle = np.hypot(x - self.x, y - self.y) / self.radius
        return self.middle - self.radius * np.sqrt(1 - np.minimum(from_middle, RIM) ** 2)


@dataclass(frozen=True)
class Spindle:
    """A round body along a nearly straight axis: positions (x, y, distance) on it, and the radius at each."""

    axis: Float[np.ndarray, "n 3"]
    radius: Float[np.ndarray, " n"]

    def away(self, x: Plane, y: Plane) -> Plane:
        ahead = self.axis[-1, :2] - self.axis[0, :2]
        ahead = ahead / max(float(np.hypot(*ahead)), 1e-6)
        along = self.axis[:, :2] @ ahead
        rising = np.maximum.accumulate(along + 1e-9 * np.arange(len(along)))
        at = x * ahead[0] + y * ahead[1]
        beside = -x * ahead[1] + y * ahead[0]
        middle = np.interp(at, rising, -self.axis[:, 0] * ahead[1] + self.axis[:, 1] * ahead[0])
        radius = np.maximum(np.interp(at, rising, self.radius), 1e-3)
        share = np.minimum(np.abs(beside - middle) / radius, RIM)
        return np.interp(at, rising, self.axis[:, 2]) - radius * np.sqrt(1 - share**2)
