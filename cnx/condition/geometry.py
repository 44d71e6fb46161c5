"""What a picture shows in space, before any map is drawn of it: known of a drawn scene, detected in a photo."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from cnx.condition.condition import Condition, Pixels

Joints = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Geometry:
    """The space that a picture of h x w pixels shows.

    Attributes:
        nearness: inverse distance, 0 at infinity, 1 for the nearest thing that there is; so a level ground is linear
            in y.
        normal: unit vectors that point out of the surface: x to the right, y up, z to the viewer. Where there is
            no surface, as in a sky, they point at the viewer.
        classes: the class of each pixel, a position in ADE20K's list of 150 (`cnx.condition.ade20k`).
        skeletons: the joints of each body by name, (x, y) in pixels, pixel centres at .5; None where what is shown
            has no skeleton at all.
        lines: straight edges from (x, y) to (x, y), in the same pixels, where they can be seen; None where what is
            shown has no straight edges at all.
    """

    nearness: Float[np.ndarray, "h w"]
    normal: Float[np.ndarray, "h w 3"]
    classes: UInt8[np.ndarray, "h w"]
    skeletons: tuple[Joints, ...] | None
    lines: Float[np.ndarray, "n 4"] | None = None


class GeometricCondition(Condition):
    """A condition whose map is drawn of what a picture shows in space, and so is true where that is known."""

    @abstractmethod
    def draw(self, geometry: Geometry) -> Pixels:
        """The map. Raises InputError where there is nothing to draw in any picture of that kind."""
