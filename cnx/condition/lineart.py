"""Line art: the lines that an artist would draw of a photo."""

import cv2
import numpy as np
from jaxtyping import Float

from cnx.condition.annotator import Annotator
from cnx.condition.comparison import compare_tones
from cnx.condition.condition import Agreement, Condition, Pixels, in_all_channels


def difference_of_gaussians(channel: Float[np.ndarray, "h w"], sigma: float) -> Float[np.ndarray, "h w"]:
    """A Gaussian blur less one 1.6 times as wide: negative on the dark side of an edge and on dark lines.

    1.6 comes closest to the Laplacian of a Gaussian (Marr and Hildreth, Proc. R. Soc. B 207, 1980). Scaled so that a
    step of height 1 reaches from -1 to 1.
    """
    narrow, wide = (cv2.GaussianBlur(channel, (0, 0), spread * sigma) for spread in (1.0, 1.6))
    return (narrow - wide) / 0.1117


def dark_sides(image: Pixels, sigma: float) -> Float[np.ndarray, "h w"]:
    """The dark sides of edges, and dark lines: 0 where there is none, 1 at a step from black to white.

    Areas of one lightness are parted by their colours, on the side with less red or yellow (a and b of Lab).
    sigma: of the narrower Gaussian, px at 512 px of the shorter side.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / 100
    spread = max(sigma * min(image.shape[:2]) / 512, 0.5)  # less does not blur
    lightness, *colours = (difference_of_gaussians(channel, spread) for channel in cv2.split(lab))
    # Where there is a step in lightness, colours would draw a second line on its other side.
    return np.maximum.reduce([np.zeros_like(lightness), -lightness, *(-c - np.abs(lightness) for c in colours)])


class Lineart(Condition):
    """Line art, white lines on black as ControlNet 1.1 takes it: the learned informative drawings of Chan et al.
    (arXiv 2203.12691) or, without weights, `dark_sides` of edges under XDoG's soft threshold (Winnemöller et al.,
    Computers & Graphics 36(6), 2012).

    Args:
        path: of the learned detector: a folder with sk_model.pth and sk_model2.pth or a hub id; None takes XDoG.
        coarse: whether the learned detector draws fewer and rougher lines (sk_model2.pth).
        sigma: of XDoG's narrower Gaussian, px at 512 px of the shorter side: half the width of a line.
        threshold: how high the step must be on whose dark side a line is drawn; 1 is from black to white.
        softness: how much higher than that makes the line white: tanh(2) = 0.96 of it.

    Raises:
        InputError: `path` is of no use (`Annotator`).
    """

    white = "a line; the brighter, the darker it would be drawn"
    licence = "Apache-2.0 (OpenCV, controlnet_aux); weights MIT (informative drawings)"
    measure = "SSIM, in [-1, 1]; higher is better"

    def __init__(
        self,
        path: str | None = None,
        coarse: bool = False,
        sigma: float = 1.8,
        threshold: float = 0.05,
        softness: float = 0.4,
    ) -> None:
        self.sigma, self.threshold, self.softness = sigma, threshold, softness
        files = ["sk_model.pth", "sk_model2.pth"]
        self.learned = Annotator("LineartDetector", path, files, coarse=coarse) if path else None

    def __call__(self, image: Pixels) -> Pixels:
        if self.learned:
            return self.learned(image)
        lines = np.tanh(2 * np.maximum(dark_sides(image, self.sigma) - self.threshold, 0) / self.softness)
        return in_all_channels((lines * 255).round().astype(np.uint8))

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """SSIM of the grey maps, as ControlNet++ (arXiv 2404.07987) reports line art; below 0 it is no fidelity."""
        return compare_tones(drawn, wanted)
