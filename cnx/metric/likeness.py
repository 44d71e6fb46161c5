"""How alike two pictures are: in structure, pixel by pixel, and in their colours."""

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from cnx.errors import InputError

WINDOW = 11  # of SSIM's Gaussian, px: Wang et al. 2004, section III-C


def ssim(
    pred: UInt8[np.ndarray, "h w c"], true: UInt8[np.ndarray, "h w c"], where: Bool[np.ndarray, "h w"] | None = None
) -> float:
    """Structural similarity, in [-1, 1], 1 if equal: Wang et al., IEEE TIP 13(4), 2004, equation 13.

    Averaged over the channels and the pixels, those `where` is true if it is given; mirrored at the edges. ControlNet++
    (arXiv 2404.07987) reports soft edges and line art by it. Raises InputError for pictures with a side below 11 px,
    the window's.
    """
    # The import takes seconds, and most who import a condition (preparation's processes) compare nothing.
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(true.shape[:2]) < WINDOW:
        raise InputError(f"maps of {true.shape[1]} x {true.shape[0]} px: SSIM needs {WINDOW} px at least")
    a, b = (torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None].double() for x in (pred, true))
    _, image = structural_similarity_index_measure(
        a, b, kernel_size=WINDOW, data_range=255.0, reduction="none", return_full_image=True
    )
    local = image[0].mean(dim=0).numpy()
    return float(local.mean() if where is None else local[where].mean())


def psnr(
    pred: UInt8[np.ndarray, "h w c"], true: UInt8[np.ndarray, "h w c"], where: Bool[np.ndarray, "h w"] | None = None
) -> float:
    """Peak signal-to-noise ratio in dB, of the pixels `where` is true if it is given; higher is more alike.

    At most 58.9 dB, where the difference is that of rounding to 8 bits (1/12 grey level squared).
    """
    squares = (pred.astype(np.float64) - true) ** 2
    error = (squares if where is None else squares[where]).mean()
    return float(10 * np.log10(255**2 / max(error, 1 / 12)))


def colour_overlap(pred: UInt8[np.ndarray, "h w 3"], true: UInt8[np.ndarray, "h w 3"], bins: int = 8) -> float:
    """How much of their colours two RGB pictures share, wherever those stand, in [0, 1].

    The intersection of their normalised histograms in CIE Lab, `bins` a side (Swain and Ballard, "Color indexing",
    IJCV 7(1), 1991); blurred by half a bin, so that
    a hair's breadth of a shade does not count as another colour.
    """
    a, b = (_histogram(picture, bins) for picture in (pred, true))
    return float(np.minimum(a, b).sum())


def _histogram(picture: UInt8[np.ndarray, "h w 3"], bins: int) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)
    counts = cv2.calcHist([lab], [0, 1, 2], None, [bins] * 3, [0, 256] * 3)
    return gaussian_filter(counts / counts.sum(), sigma=0.5, mode="reflect")
