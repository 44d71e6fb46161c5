"""Scribbles: a few thick strokes, of a person's hand or made of a photo."""

import cv2
import numpy as np
from jaxtyping import Bool, Float

from cnx.condition.comparison import compare_edges
from cnx.condition.condition import Agreement, Condition, Pixels, in_all_channels
from cnx.condition.softedge import SoftEdge


class Scribble(Condition):
    """Scribbles, thick white strokes on black: a person's own, or the ridges of a photo's soft edges, thickened.

    A picture of thin strokes on plain paper, of whatever colours and either way round, is taken for a person's own and
    drawn in white on black. Any other is annotated as ControlNet does it: soft edges, of which each line's crest is
    kept (non-maximum suppression) and thickened.

    Args:
        path: of the learned soft edges, HED: a folder with ControlNetHED.pth or a hub id; None takes gradients.
        threshold: how strong a soft edge must be to become a stroke, of black to white in [0, 1].
        width: of a stroke made of a photo, px at 512 px of the shorter side. ControlNet's blur makes 12 of a line.

    Raises:
        InputError: `path` is of no use (`Annotator`).
    """

    white = "a stroke"
    licence = "Apache-2.0 (OpenCV; the HED of controlnet_aux and its weights)"
    measure = "F1 of strokes, pixel-exact, in [0, 1]; higher is better"

    def __init__(self, path: str | None = None, threshold: float = 0.3, width: float = 10.0) -> None:
        self.edges, self.threshold, self.width = SoftEdge(path), threshold, width

    def __call__(self, image: Pixels) -> Pixels:
        strokes = find_strokes(image)
        return in_all_channels((self.strokes(image) if strokes is None else strokes) * np.uint8(255))

    def strokes(self, photo: Pixels) -> Bool[np.ndarray, "h w"]:
        """Where strokes made of a photo are."""
        return self.thicken(self.trace(photo, self.threshold), self.width)

    def trace(self, photo: Pixels, threshold: float) -> Bool[np.ndarray, "h w"]:
        """The middle of each stroke, 1 px wide; what is shorter than 1/16 of the shorter side is a speck and none."""
        lines = (self.ridges(photo) >= threshold).astype(np.uint8)
        _, labels, found, _ = cv2.connectedComponentsWithStats(lines, connectivity=8)
        long = found[:, cv2.CC_STAT_AREA] >= min(lines.shape) / 16
        long[0] = False  # what is between the lines
        return long[labels]

    def ridges(self, photo: Pixels) -> Float[np.ndarray, "h w"]:
        """A photo's soft edges, in [0, 1], on their crests alone; 0 elsewhere."""
        soft = self.edges(photo)[:, :, 0].astype(np.float32) / 255
        soft = cv2.GaussianBlur(soft, (0, 0), max(3 * min(soft.shape) / 512, 0.6))
        xx, xy, yy = (cv2.Sobel(soft, cv2.CV_32F, *order, ksize=5) for order in ((2, 0), (1, 1), (0, 2)))
        # The direction of the greatest downward curvature, in steps of 45 degrees, and the neighbours along it.
        across = np.round((np.arctan2(2 * xy, xx - yy) / 2 + np.pi / 2) / (np.pi / 4)).astype(int) % 4
        padded = np.pad(soft, 1)
        height, width = soft.shape
        crest = np.zeros(soft.shape, bool)
        for direction, (x, y) in enumerate(((1, 0), (1, 1), (0, 1), (-1, 1))):
            ahead = padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]
            behind = padded[1 - y : 1 - y + height, 1 - x : 1 - x + width]
            crest |= (across == direction) & (soft > ahead) & (soft >= behind)
        return soft * crest

    def thicken(self, lines: Bool[np.ndarray, "h w"], width: float) -> Bool[np.ndarray, "h w"]:
        """Lines, `width` px wide at 512 px of the shorter side, and at least 1 px."""
        side = max(round(width * min(lines.shape) / 512), 1)
        pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        return cv2.dilate(lines.astype(np.uint8), pen) > 0

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """F1 of strokes: with a tolerance, and pixel-exact. There is no number in the literature to set beside it."""
        return compare_edges(drawn, wanted)


def find_strokes(image: Pixels) -> Bool[np.ndarray, "h w"] | None:
    """Where the strokes are, if the picture is one of thin strokes on plain paper; None if it is anything else.

    Plain: more than half of the pixels are within 16 grey levels of the middle one in each channel, and of nearly black
    or white. Thin: no more than a tenth of the ink is farther than 1/32 of the shorter side from paper.
    """
    paper = np.median(image.reshape(-1, 3), axis=0)
    away = np.abs(image - paper).max(axis=2)
    plain = (away <= 16).mean() > 0.5 and (paper.min() > 223 or paper.max() < 32)
    ink = away > 96
    if not plain or not ink.any():
        return None
    depth = cv2.distanceTransform(ink.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return ink if (depth[ink] > min(ink.shape) / 32).mean() <= 0.1 else None
