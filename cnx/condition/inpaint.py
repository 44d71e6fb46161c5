"""ControlNet 1.1's inpaint: a picture of which a part is to be drawn anew."""

import cv2
import numpy as np
from jaxtyping import Bool

from cnx.condition.condition import Agreement, Condition, Pixels
from cnx.condition.noise import generator_of, smooth_noise
from cnx.errors import InputError
from cnx.metric import psnr, ssim

MARK = np.array([255, 0, 255], np.uint8)


class Inpaint(Condition):
    """Inpaint of ControlNet 1.1: the picture, with what is to be drawn anew marked in magenta (255, 0, 255).

    The released code marks with -1 where pictures are in [0, 1]. A map here is a picture in [0, 1], which has no -1, so
    that a colour must do that photos hardly have: a branch that is trained here learns it, one that was released does
    not know it. A pixel that is magenta by itself is moved by one grey level.

    The mask is blobs of a smooth random field, seeded by the picture's content. Where a picture has marks already, at
    least 0.1% of it, they are the mask.

    Args:
        share: the least and the greatest share of the picture that is masked, in [0, 1].
        cell: size of a blob, px at 512 px of the shorter side.

    Raises:
        InputError: `share` is no range of shares.
    """

    white = "white: what is magenta is to be drawn anew, all else is the picture"
    licence = "Apache-2.0 (OpenCV)"
    measure = "PSNR of what is not masked, in dB, at most 58.9; higher is better"

    def __init__(self, share: tuple[float, float] = (0.1, 0.5), cell: float = 128.0) -> None:
        if not 0 <= share[0] <= share[1] <= 1:
            raise InputError(f"condition.share={list(share)}: must be two shares, the least first, from 0 to 1")
        self.share, self.cell = share, cell

    def __call__(self, image: Pixels) -> Pixels:
        if (image == MARK).all(axis=2).mean() >= 0.001:
            return image
        rng = generator_of(image)
        height, width = image.shape[:2]
        field = smooth_noise(rng, height, width, self.cell * min(height, width) / 512)
        hidden = field < np.quantile(field, rng.uniform(*self.share))
        seen = np.where((image == MARK).all(axis=2)[:, :, None], MARK - np.array([1, 0, 0], np.uint8), image)
        return np.where(hidden[:, :, None], MARK, seen)

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """How alike the pictures are where `wanted` is not masked. Fidelity: SSIM; published: PSNR."""
        hidden = masked(wanted)
        # A resize has mixed the mark into its neighbours.
        known = cv2.dilate(hidden.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0
        if not known.any():
            return Agreement(1.0, psnr(wanted, wanted))  # nothing was asked for
        same = np.where(known[:, :, None], drawn, wanted)  # SSIM's window reaches into the mask
        return Agreement(max(ssim(same, wanted, where=known), 0.0), psnr(drawn, wanted, where=known))

    def judge(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """The drawing itself is compared: the mask is the map's."""
        return self.compare(drawn, wanted)

    def display(self, control_map: Pixels) -> Pixels:
        """What is masked in checks of grey, as picture editors show what is not there."""
        height, width = control_map.shape[:2]
        y, x = np.indices((height, width)) // max(min(height, width) // 32, 1)
        checks = np.where((x + y) % 2 == 0, 204, 153).astype(np.uint8)[:, :, None]
        return np.where(masked(control_map)[:, :, None], checks, control_map)


def masked(control_map: Pixels) -> Bool[np.ndarray, "h w"]:
    """Where a map is marked, though it was resized or stored as JPEG: magenta to within 48 grey levels."""
    return np.abs(control_map.astype(np.int16) - MARK).max(axis=2) <= 48
