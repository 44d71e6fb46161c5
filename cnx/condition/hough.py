"""Straight lines."""

from importlib import import_module

import cv2
import numpy as np
from jaxtyping import Float

from cnx.condition.annotator import RESOLUTION, Annotator
from cnx.condition.comparison import compare_edges
from cnx.condition.condition import Agreement, Pixels
from cnx.condition.geometry import GeometricCondition, Geometry
from cnx.errors import InputError


class Hough(GeometricCondition):
    """Straight lines, white on black, 1 px wide: learned, M-LSD (Gu et al., arXiv 2106.00186), as the paper's Hough
    lines were, or without weights LSD (Grompone von Gioi et al., IPOL 2, 2012).

    Args:
        path: of M-LSD: a folder with mlsd_large_512_fp32.pth or a hub id; None takes LSD.
        min_length: of a line that counts, as a share of the shorter side. Less lets curves through in pieces.
        min_score: of a line that M-LSD finds, in [0, 1]; 0.1 is ControlNet's.

    Raises:
        InputError: `path` is of no use (`Annotator`).
    """

    white = "a straight line"
    licence = "Apache-2.0 (OpenCV's LSD; controlnet_aux; M-LSD and its weights)"
    measure = "F1 of the pixels on lines, within 1% of the diagonal; higher is better"

    def __init__(self, path: str | None = None, min_length: float = 0.08, min_score: float = 0.1) -> None:
        self.min_length, self.min_score = min_length, min_score
        self.learned = Annotator("MLSDdetector", path, ["mlsd_large_512_fp32.pth"]) if path else None

    def __call__(self, image: Pixels) -> Pixels:
        return _draw(self.lines(image), *image.shape[:2])

    def draw(self, geometry: Geometry) -> Pixels:
        """The straight pieces of outlines: horizons, ridges of hills, birds."""
        if geometry.lines is None:
            raise InputError("condition=hough: nothing in this data set is straight; use data=birds or data=dogs")
        return _draw(geometry.lines - 0.5, *geometry.nearness.shape)  # of positions, pixel centres are at .5

    def lines(self, image: Pixels) -> Float[np.ndarray, "n 4"]:
        """The ends (x0, y0, x1, y1) in px of the straight lines in an RGB photo."""
        found = self._m_lsd(image, self.learned) if self.learned else _lsd(image)
        lengths = np.hypot(found[:, 2] - found[:, 0], found[:, 3] - found[:, 1])
        return found[lengths >= self.min_length * min(image.shape[:2])]

    def _m_lsd(self, image: Pixels, annotator: Annotator) -> Float[np.ndarray, "n 4"]:
        # Not by calling the detector: that draws lines at its own size, which fade where the picture is smaller.
        import torch

        pred_lines = import_module("controlnet_aux.mlsd.utils").pred_lines

        height, width = image.shape[:2]
        scale = RESOLUTION / min(height, width)
        seen = [max(round(side * scale / 64), 1) * 64 for side in (height, width)]
        small = cv2.resize(image, (seen[1], seen[0]), interpolation=cv2.INTER_AREA)
        with torch.inference_mode():
            try:
                lines = pred_lines(small, annotator.detector.model, seen, self.min_score, 0.1)
            except IndexError:  # of its empty list
                return np.zeros((0, 4))
        return lines * [width / seen[1], height / seen[0], width / seen[1], height / seen[0]]

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """F1 of the pixels on lines. Published: a pixel is matched within 1% of the diagonal, as in the heat map score
        F^H of wireframes (Huang et al., CVPR 2018), by which M-LSD is measured too.
        """
        return compare_edges(drawn, wanted, published_tolerance=0.01 * float(np.hypot(*wanted.shape[:2])))


def _draw(lines: Float[np.ndarray, "n 4"], height: int, width: int) -> Pixels:
    drawn = np.zeros((height, width, 3), np.uint8)
    for x0, y0, x1, y1 in lines.round().astype(int).tolist():
        cv2.line(drawn, (x0, y0), (x1, y1), (255, 255, 255))
    return drawn


def _lsd(image: Pixels) -> Float[np.ndarray, "n 4"]:
    lines = cv2.createLineSegmentDetector().detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return np.zeros((0, 4)) if lines is None else lines.reshape(-1, 4)
