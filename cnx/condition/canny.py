"""Canny edges."""

from dataclasses import dataclass

import cv2

from cnx.condition.comparison import compare_edges
from cnx.condition.condition import Agreement, Condition, Pixels, in_all_channels


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
        return in_all_channels(edges)

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """Edge F1, with a tolerance and pixel-exact: the latter is ControlNet++'s (arXiv 2404.07987; x100 there)."""
        return compare_edges(drawn, wanted)
