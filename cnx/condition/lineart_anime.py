"""Line art of drawings: thin lines between flat colours."""

import numpy as np

from cnx.condition.annotator import Annotator
from cnx.condition.comparison import compare_tones
from cnx.condition.condition import Agreement, Condition, Pixels, in_all_channels
from cnx.condition.lineart import dark_sides


class LineartAnime(Condition):
    """Anime line art, white lines on black as ControlNet 1.1 takes it: learned (Anime2Sketch, Xiang et al.,
    arXiv 2104.05703) or, without weights, the `dark_sides` of edges, cut off sharply: where flat colours meet and where
    there are dark strokes, which are one line each and not two.

    Args:
        path: of the learned detector: a folder with netG.pth or a hub id; None takes differences of Gaussians.
        sigma: of the narrower Gaussian, px at 512 px of the shorter side: half the width of a line.
        threshold: how high a step is drawn at all; 1 is from black to white.
        softness: how much higher than that makes the line white: little, so that lines are crisp.

    Raises:
        InputError: `path` is of no use (`Annotator`).
    """

    white = "a line"
    licence = "Apache-2.0 (OpenCV, controlnet_aux); weights MIT (Anime2Sketch)"
    measure = "SSIM, in [-1, 1]; higher is better"

    def __init__(
        self, path: str | None = None, sigma: float = 1.3, threshold: float = 0.12, softness: float = 0.1
    ) -> None:
        self.sigma, self.threshold, self.softness = sigma, threshold, softness
        self.learned = Annotator("LineartAnimeDetector", path, ["netG.pth"]) if path else None

    def __call__(self, image: Pixels) -> Pixels:
        if self.learned:
            return self.learned(image)
        lines = np.clip((dark_sides(image, self.sigma) - self.threshold) / self.softness, 0, 1)
        return in_all_channels((lines * 255).round().astype(np.uint8))

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """SSIM of the grey maps, as ControlNet++ (arXiv 2404.07987) reports line art; below 0 it is no fidelity."""
        return compare_tones(drawn, wanted)
