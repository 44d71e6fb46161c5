"""The geometry of a drawn scene, laid down in the order of painting."""

import cv2
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
        self._edges: list[tuple[int, Float[np.ndarray, "n 2"]]] = []
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

    def note_edge(self, edge: Float[np.ndarray, "n 2"], surfaces: int = 1) -> None:
        """Remember where the last surfaces laid down end: a polyline in shares of the side.

        Its straight pieces are lines, wherever they can be seen.
        """
        self._edges.append((self._laid - surfaces, edge * self.size))

    def note_outline(self, where: Bool[np.ndarray, "h w"], surfaces: int) -> None:
        """Remember the outlines of the last surfaces laid down, which cover these pixels between them."""
        contours, _ = cv2.findContours(where.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        for contour in contours:
            corners = (contour[:, 0] + 0.5) / self.size
            self.note_edge(np.concatenate([corners, corners[:1]]), surfaces)

    def lines(self) -> Float[np.ndarray, "n 4"]:
        """The straight pieces of edges, of a twelfth of the side or more, where another surface begins beyond them."""
        found = []
        for before, edge in self._edges:
            corners = cv2.approxPolyDP(edge[:, None].astype(np.float32), max(0.5, self.size / 128), False)[:, 0]
            for start, end in zip(corners, corners[1:], strict=False):
                found += self._seen(before, start.astype(np.float64), end.astype(np.float64))
        return np.array(found, np.float64).reshape(-1, 4)

    def _seen(self, before: int, start: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
        """The parts of a line with one of the surfaces after `before` on one side, and another on the other."""
        length, least = float(np.hypot(*(end - start))), self.size / 12
        if length < least:
            return []
        ahead = (end - start) / length
        aside = 2 * np.array([-ahead[1], ahead[0]])
        at = start + np.arange(0.0, length + 1e-6, 1.0)[:, None] * ahead
        own = [self._owner_at(at + side * aside) > before for side in (-1, 1)]
        edge = np.concatenate([[False], own[0] != own[1], [False]]).astype(int)
        firsts, ends = np.nonzero(np.diff(edge) == 1)[0], np.nonzero(np.diff(edge) == -1)[0]
        runs = [(first, last - 1) for first, last in zip(firsts, ends, strict=True) if last - 1 - first >= least - 1]
        return [np.concatenate([at[first], at[last]]) for first, last in runs]

    def _owner_at(self, at: Float[np.ndarray, "n 2"]) -> np.ndarray:
        column, row = np.clip(np.floor(at).astype(int), 0, self.size - 1).T
        return self.owner[row, column]

    def geometry(self, skeletons: tuple[Joints, ...] | None) -> Geometry:
        """What has been painted; joints are given in shares of the side."""
        if skeletons is not None:
            size = self.size
            skeletons = tuple({n: (x * size, y * size) for n, (x, y) in joints.items()} for joints in skeletons)
        return Geometry(self.nearness, self.normal, self.classes, skeletons, self.lines() if self._edges else None)


def lay_backdrop(canvas: Canvas, backdrop: Backdrop) -> None:
    """Sea or hills; sun, moon, stars and clouds are of the sky."""
    side = canvas.size
    below = (np.arange(side) + 0.5) / side - backdrop.horizon
    if backdrop.ground == "sea":  # a level plane, whose inverse distance is linear in y
        near = np.repeat((GROUND * below / (1 - backdrop.horizon))[:, None], side, 1)
        where = np.repeat((below > 0)[:, None], side, 1)
        canvas.lay(where, SEA, near[where], (0, 1, 0))
        canvas.note_edge(np.array([[0.0, backdrop.horizon], [1.0, backdrop.horizon]]))
    for layer, ridge in enumerate(backdrop.ridges):
        slope = np.sqrt(0.5)  # half towards the viewer, half upwards
        canvas.lay(canvas.inside(hill(ridge)), HILL, GROUND * (layer + 1) / 4, (0, slope, slope))
        canvas.note_edge(hill(ridge)[2:-2])
