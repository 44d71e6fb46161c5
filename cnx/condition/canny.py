"""Canny edges."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from cnx.metric import edge_f1


@dataclass(frozen=True)
class Canny:
    """Canny edges as ControlNet's tutorial and annotator draw them: white lines (255) on black (0), in all channels.

    Attributes:
        low: gradient, in grey levels, from which a pixel that touches an edge belongs to it.
        high: gradient from which a pixel is an edge by itself. 100 and 200 are ControlNet's defaults.
    """

    low: int = 100
    high: int = 200

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The control map of an RGB photo, of the same size."""
        edges = cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), self.low, self.high)
        return np.repeat(edges[:, :, None], 3, axis=2)

    def fidelity(self, drawn: UInt8[np.ndarray, "h w 3"], wanted: UInt8[np.ndarray, "h w 3"]) -> float:
        """How well a drawn RGB image obeys the wanted map, in [0, 1]: F1 of edges.

        An edge may be off by 1 px per 128 px of the shorter side, at least 1: an eye sees no disobedience in that.
        """
        height, width = wanted.shape[:2]
        return self._f1(drawn, wanted, tolerance=max(1, round(min(height, width) / 128)))

    def fidelity_exact(self, drawn: UInt8[np.ndarray, "h w 3"], wanted: UInt8[np.ndarray, "h w 3"]) -> float:
        """As `fidelity`, pixel-exact: the number (in [0, 1], not x100) to set beside ControlNet++'s canny F1."""
        return self._f1(drawn, wanted, tolerance=0)

    def _f1(self, drawn: UInt8[np.ndarray, "h w 3"], wanted: UInt8[np.ndarray, "h w 3"], tolerance: int) -> float:
        return edge_f1(_edges(self(drawn)), _edges(wanted), tolerance)


def _edges(control_map: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    # A resize makes greys (a line of 1 px, shrunk four times, is 64), and so does JPEG (rarely above 32).
    return control_map.max(axis=2) > 32
