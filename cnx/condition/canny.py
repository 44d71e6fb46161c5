"""Canny edges."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool

from cnx.condition.condition import Agreement, Condition, Pixels
from cnx.metric import edge_f1


@dataclass(frozen=True)
class Canny(Condition):
    """Canny edges as ControlNet's tutorial and annotator draw them: white lines (255) on black (0), in all channels.

    Attributes:
        low: gradient, in grey levels, from which a pixel that touches an edge belongs to it.
        high: gradient from which a pixel is an edge by itself. 100 and 200 are ControlNet's defaults.
    """

    white = "an edge"
    licence = "Apache-2.0 (OpenCV)"
    measure = "edge F1, pixel-exact, in [0, 1]; higher is better"

    low: int = 100
    high: int = 200

    def __call__(self, image: Pixels) -> Pixels:
        edges = cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), self.low, self.high)
        return np.repeat(edges[:, :, None], 3, axis=2)

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """Edge F1. Fidelity: an edge may be off by 1 px per 128 px of the shorter side, at least 1: an eye sees no
        disobedience in that. Published: pixel-exact, as ControlNet++ (arXiv 2404.07987) reports canny (x100 there).
        """
        height, width = wanted.shape[:2]
        pred, true = _edges(drawn), _edges(wanted)
        tolerance = max(1, round(min(height, width) / 128))
        return Agreement(edge_f1(pred, true, tolerance), edge_f1(pred, true, tolerance=0))


def _edges(control_map: Pixels) -> Bool[np.ndarray, "h w"]:
    # A resize makes greys (a line of 1 px, shrunk four times, is 64), and so does JPEG (rarely above 32).
    return control_map.max(axis=2) > 32
