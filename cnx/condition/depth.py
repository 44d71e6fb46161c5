"""Depth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cnx.condition.condition import Agreement, Pixels, in_all_channels
from cnx.condition.detector import DEPTH_MODEL, SCENES, depth_detector
from cnx.condition.geometry import GeometricCondition, Geometry
from cnx.metric import depth_rmse


@dataclass(frozen=True)
class Depth(GeometricCondition):
    """Inverse depth, as MiDaS gives it and ControlNet takes it: near is white (255), infinitely far is black (0), grey.

    Attributes:
        path: the detector: the one of drawn scenes that ships with the repository, or for photos the folder or hub id
            of a depth model of transformers (Depth Anything, DPT, ZoeDepth, ...), whose result is stretched to 0..255.
    """

    white = "near; black is far"
    licence = "MIT (drawn scenes); of the model that path names (Depth Anything V2 Small and DPT: Apache-2.0, MIT)"
    measure = "depth RMSE on 0..255; lower is better"
    for_photos = DEPTH_MODEL

    path: str = SCENES

    def __call__(self, image: Pixels) -> Pixels:
        return self.annotate([image])[0]

    def annotate(self, images: Sequence[Pixels]) -> list[Pixels]:
        return [_grey(nearness) for nearness in depth_detector(self.path).nearness(images)]

    def draw(self, geometry: Geometry) -> Pixels:
        return _grey(geometry.nearness)

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """RMSE, which ControlNet++ reports; fidelity is 1 - RMSE / 255."""
        rmse = depth_rmse(drawn[..., 0], wanted[..., 0])
        return Agreement(1 - rmse / 255, rmse)


def _grey(nearness: np.ndarray) -> Pixels:
    return in_all_channels(np.round(np.clip(nearness, 0, 1) * 255).astype(np.uint8))
