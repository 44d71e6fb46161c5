"""The geometry of a drawn scene, laid down in the order of painting."""

import numpy as np
from jaxtyping import Bool, Float

from cnx.condition.ade20k import number
from cnx.condition.geometry import Geometry, Joints
from cnx.data.synthetic.backdrop import Backdrop, fill, hill
from cnx.data.synthetic.surface import Surface

SKY, SEA, HILL, ANIMAL, WALL, BALL = (number(name) for name in ("sky", "sea", "hill", "animal", "wall", "ball"))

# Nearness is this over the distance in units of the thing that is seen, whose size says how far away it is: a camera
# that sees as much from side to side as it is away. The largest birds are just within 1.
NEAR = 1.3
# What lies on the ground is farther than all that moves over it.
GROUND = 0.15


class Canvas:
    """Where truth is painted, one surface over the other; `background` is a class without a surface, infinitely far."""

    def __init__(self, size: int, background: int) -> None:
        self.size = size
        self.nearness = np.zeros((size, size), np.float32)
        self.normal = np.zeros((size, size, 3), np.float32)
        self.normal[..., 2] = 1
        self.classes = np.full((size, size), background, np.uint8)
        self.owner = np.zeros((size, size), np.int32)  # which laying down was the last
        self._laid = 0
        self._at = (np.arange(size) + 0.5) / size

    def inside(self, *outlines: Float[np.ndarray, "n 2"], share: float = 0.5) -> Bool[np.ndarray, "h w"]:
        """The pixels of which outlines, in shares of the side, cover more than a share between them."""
        mask = np.zeros((self.size, self.size), np.uint8)
        for outline in outlines:
            fill(mask, outline, 255)
        return mask > 255 * share

    def lay(
        self, where: Bool[np.ndarray, "h w"], kind: int, nearness: np.ndarray | float, normal: np.ndarray | tuple
    ) -> None:
        """Paint a surface; what was there before is hidden."""
        self._laid += 1
        self.owner[where], self.classes[where] = self._laid, kind
        self.nearness[where], self.normal[where] = nearness, normal

    def lay_surface(
        self,
        where: Bool[np.ndarray, "h w"],
        kind: int,
        surface: Surface,
        middle: tuple[float, float],
        centre: tuple[float, float],
        scale: float,
    ) -> None:
        """Paint a surface whose own position `middle` is seen at `centre` and whose unit is `scale` of the side."""
        rows, columns = np.nonzero(where)
        if not len(rows):
            return
        x = (self._at[columns] - centre[0]) / scale + middle[0]
        y = (self._at[rows] - centre[1]) / scale + middle[1]
        half = 0.5 / self.size / scale  # of a pixel, in the surface's unit
        along_x = (surface.away(x + half, y) - surface.away(x - half, y)) / (2 * half)
        along_y = (surface.away(x, y + half) - surface.away(x, y - half)) / (2 * half)
        # What falls back to the right faces right; y is down here and up in a normal.
        normal = np.stack([along_x, -along_y, np.ones_like(x)], 1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        nearness = NEAR / np.maximum(1 / scale + surface.away(x, y), NEAR)
        self.lay(where, kind, np.maximum(nearness, GROUND), normal)

    def geometry(self, skeletons: tuple[Joints, ...] | None) -> Geometry:
        """What has been painted; joints are given in shares of the side."""
        if skeletons is not None:
            size = self.size
            skeletons = tuple({n: (x * size, y * size) for n, (x, y) in joints.items()} for joints in skeletons)
        return Geometry(self.nearness, self.normal, self.classes, skeletons)


def lay_backdrop(canvas: Canvas, backdrop: Backdrop) -> None:
    """Sea or hills; sun, moon, stars and clouds are of the sky."""
    side = canvas.size
    below = (np.arange(side) + 0.5) / side - backdrop.horizon
    if backdrop.ground == "sea":  # a level plane, whose inverse distance is linear in y
        near = np.repeat((GROUND * below / (1 - backdrop.horizon))[:, None], side, 1)
        where = np.repeat((below > 0)[:, None], side, 1)
        canvas.lay(where, SEA, near[where], (0, 1, 0))
    for layer, ridge in enumerate(backdrop.ridges):
        slope = np.sqrt(0.5)  # half towards the viewer, half upwards
        canvas.lay(canvas.inside(hill(ridge)), HILL, GROUND * (layer + 1) / 4, (0, slope, slope))
