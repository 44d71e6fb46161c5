"""Surface normals."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from cnx.condition.condition import Agreement, Pixels
from cnx.condition.detector import NORMAL_MODEL, SCENES, depth_detector, normal_detector
from cnx.condition.geometry import GeometricCondition, Geometry
from cnx.metric import normal_angles

Normals = Float[np.ndarray, "h w 3"]
# From a unit normal (x to the right, y up, z to the viewer) to the colours of ControlNet 1.1: red is left.
AXES = np.array([-1, 1, 1], np.float32)
FULL = 45.0  # degrees: the mean angle from which on a drawing does not obey its map at all


@dataclass(frozen=True)
class Normal(GeometricCondition):
    """Surface normals in the colours of ControlNet 1.1, which are those of NYU-V2 and BAE.

    Red (0 to 255) is how much a surface faces left, green how much up, blue how much the viewer; 128 is neither way.
    What faces the viewer, and what has no surface, like a sky, is (128, 128, 255).

    Attributes:
        path: the detector: the one of drawn scenes that ships with the repository, or for photos the folder or hub id
            of a normals pipeline of diffusers (Marigold).
        from_depth: take the normals of depth, by its gradient; `path` is then a depth detector, as Depth has it.
    """

    white = "nothing is white: red faces left, green up, blue the viewer"
    licence = "MIT (drawn scenes); of the model that path names (Marigold: OpenRAIL++-M)"
    measure = "mean angle in degrees; lower is better"
    for_photos = NORMAL_MODEL

    path: str = SCENES
    from_depth: bool = False

    def __call__(self, image: Pixels) -> Pixels:
        return self.annotate([image])[0]

    def annotate(self, images: Sequence[Pixels]) -> list[Pixels]:
        if self.from_depth:
            return [_paint(normal_of(nearness)) for nearness in depth_detector(self.path).nearness(images)]
        return [_paint(normal) for normal in normal_detector(self.path).normal(images)]

    def draw(self, geometry: Geometry) -> Pixels:
        return _paint(geometry.normal)

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """The mean angle; fidelity is 1 - angle / 45 degrees, at least 0."""
        angle = float(normal_angles(_read(drawn), _read(wanted)).mean())
        return Agreement(max(0.0, 1 - angle / FULL), angle)


def _paint(normal: Normals) -> Pixels:
    return np.round((normal * AXES + 1) * 127.5).astype(np.uint8)


def _read(control_map: Pixels) -> Normals:
    normal = (control_map.astype(np.float32) / 127.5 - 1) * AXES
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)


def normal_of(nearness: Float[np.ndarray, "h w"], relief: float = 0.5) -> Normals:
    """The normals of inverse depth in [0, 1], by its gradient.

    An inverse depth says nothing of how steep things are: `relief` is how deep the scene is taken to be from nearness 0
    to 1, in sides of the image. Smoothed over a hundredth of the side, since a gradient shows every bit of noise.
    """
    side = min(nearness.shape)
    smooth = cv2.GaussianBlur(nearness.astype(np.float32), (0, 0), max(0.5, side / 100))
    along_x = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8) * side * relief
    along_y = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8) * side * relief
    # What comes nearer to the right faces left; y is down in an image.
    normal = np.stack([-along_x, along_y, np.ones_like(smooth)], -1)
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)
