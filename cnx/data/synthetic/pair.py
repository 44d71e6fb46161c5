"""What every synthetic data set draws: one control map, one image, one caption."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from cnx.condition import Canny, Condition, GeometricCondition, Geometry, Given


@dataclass(frozen=True)
class Pair:
    """One training item: control map and image, both RGB of the same side, and the caption that is true of them."""

    source: UInt8[np.ndarray, "h w 3"]
    target: UInt8[np.ndarray, "h w 3"]
    prompt: str


class Scenes(Protocol):
    """A data set that is drawn, not collected: item `index` is the same whatever `count` and on every machine.

    `version` goes up whenever the drawing changes, so that folders written before are made again. `condition` says
    which control maps go with the pictures; None is the set's own.
    """

    name: str
    count: int
    version: int
    condition: Condition | None

    def draw(self, index: int, size: int) -> Pair:
        """Draw item `index`, 0 or more, as a square of `size` pixels."""
        ...

    def geometry(self, index: int, size: int) -> Geometry:
        """The space that the picture of item `index` shows."""
        ...

    def prompt(self, index: int) -> str:
        """The caption of item `index`, without drawing it."""
        ...

    def vocabulary(self) -> list[str]:
        """Every word that a caption can hold, sorted."""
        ...


def unlike_own(condition: Condition | None) -> Condition | None:
    """The condition; None where the set's own maps, which are edges or outlines, are those that it asks for."""
    return None if condition == Canny() or isinstance(condition, Given) else condition


def control_map(
    condition: Condition, target: UInt8[np.ndarray, "h w 3"], geometry: Callable[[], Geometry]
) -> UInt8[np.ndarray, "h w 3"]:
    """The map of a drawn picture: true where a scene's geometry tells it, else what the annotator sees in it."""
    return condition.draw(geometry()) if isinstance(condition, GeometricCondition) else condition(target)
