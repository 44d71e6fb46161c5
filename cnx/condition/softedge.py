"""Soft edges: grey, thick where an edge is strong, as HED draws them."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float

from cnx.condition.annotator import Annotator
from cnx.condition.comparison import compare_tones
from cnx.condition.condition import Agreement, Condition, Pixels, in_all_channels
from cnx.errors import InputError


class SoftEdge(Condition):
    """Soft edges, white on black: HED's (Xie and Tu, arXiv 1504.06375) or, without weights, gradients at many scales.

    The gradients: at each scale sigma, the picture is blurred by a Gaussian and the length of sigma times its gradient
    taken, in the strongest channel of Lab (Lindeberg, IJCV 30(2), 1998: edges of one contrast are equally strong at
    every scale). Their geometric mean keeps what is an edge at all scales: outlines, not texture.

    Args:
        path: of the learned detector, ControlNet's HED: a folder with ControlNetHED.pth or a hub id; None takes the
            gradients.
        levels: in how many grey levels the map is rounded down, 2 or more; None keeps all. ControlNet 1.1 takes 3 and
            calls it safe: a smooth map hides a grey copy of the photo, and what is trained learns to read that.
        scales: of the gradients, px at 512 px of the shorter side.
        gain: how steeply brightness grows with strength: an edge of strength 1 / `gain` is 0.63 of white.
        threshold: how strong an edge must be to show; 1 is a step from black to white.

    Raises:
        InputError: `levels` is too few, or `path` is of no use (`Annotator`).
    """

    white = "an edge; the brighter, the stronger"
    licence = "Apache-2.0 (OpenCV; the HED of controlnet_aux and its weights)"
    measure = "SSIM, in [-1, 1]; higher is better"

    def __init__(
        self,
        path: str | None = None,
        levels: int | None = None,
        scales: Sequence[float] = (1.0, 2.0, 4.0),
        gain: float = 6.0,
        threshold: float = 0.03,
    ) -> None:
        if levels is not None and levels < 2:
            raise InputError(f"condition.levels={levels}: must be at least 2; null keeps all grey levels")
        self.levels, self.scales, self.gain, self.threshold = levels, scales, gain, threshold
        self.learned = Annotator("HEDdetector", path, ["ControlNetHED.pth"]) if path else None

    def __call__(self, image: Pixels) -> Pixels:
        soft = self.learned(image)[:, :, 0] / 255 if self.learned else self._gradients(image)
        if self.levels is not None:
            soft = np.minimum(np.floor(soft * self.levels) / (self.levels - 1), 1)
        return in_all_channels((soft * 255).round().astype(np.uint8))

    def _gradients(self, image: Pixels) -> Float[np.ndarray, "h w"]:
        lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / 100
        product = np.ones(image.shape[:2], np.float32)
        for scale in self.scales:
            sigma = max(scale * min(image.shape[:2]) / 512, 0.6)  # less does not blur
            blurred = cv2.GaussianBlur(lab, (0, 0), sigma)
            # Scharr's kernel sums up to 32 a pixel.
            along_x, along_y = (cv2.Scharr(blurred, cv2.CV_32F, *axis) / 32 for axis in ((1, 0), (0, 1)))
            length = np.sqrt(along_x**2 + along_y**2).max(axis=2)
            product *= length * sigma * np.sqrt(2 * np.pi)  # 1 on a step from black to white
        strength = product ** (1 / len(self.scales))
        return 1 - np.exp(
            -self.gain * np.maximum(strength - self.threshold, 0)
        )  # crests stay crests: nothing is cut off

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """SSIM of the grey maps, as ControlNet++ (arXiv 2404.07987) reports HED; below 0 it is no fidelity at all."""
        return compare_tones(drawn, wanted)
