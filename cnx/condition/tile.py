"""ControlNet 1.1's tile: a picture without its details."""

import cv2

from cnx.condition.condition import Agreement, Condition, Pixels
from cnx.errors import InputError
from cnx.metric import psnr, ssim


class Tile(Condition):
    """Tile of ControlNet 1.1: the picture shrunk (by area) and enlarged again (bicubic); new details are to be drawn.

    Args:
        factor: by which it is shrunk; 8, ControlNet's, makes 64 px of 512.

    Raises:
        InputError: `factor` is below 1.
    """

    white = "no meaning of its own: a colour is the mean colour of that place"
    licence = "Apache-2.0 (OpenCV)"
    measure = "PSNR of the shrunk pictures in dB, at most 58.9; higher is better"

    def __init__(self, factor: float = 8.0) -> None:
        if factor < 1:
            raise InputError(f"condition.factor={factor}: a picture is shrunk by 1 or more; 8 is ControlNet's")
        self.factor = factor

    def __call__(self, image: Pixels) -> Pixels:
        height, width = image.shape[:2]
        return cv2.resize(self._shrink(image), (width, height), interpolation=cv2.INTER_CUBIC)

    def _shrink(self, image: Pixels) -> Pixels:
        height, width = (max(round(side / self.factor), 1) for side in image.shape[:2])
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """Fidelity: SSIM of the maps. Published: PSNR of the shrunk ones, super-resolution's consistency (LR-PSNR of
        the NTIRE 2021 challenge on its space, Lugmayr et al., CVPRW 2021).
        """
        return Agreement(max(ssim(drawn, wanted), 0.0), psnr(self._shrink(drawn), self._shrink(wanted)))
