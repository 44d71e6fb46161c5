"""Maps of depth, normals and classes compared, pixel by pixel."""

import numpy as np
from jaxtyping import Float, UInt8


def depth_rmse(pred: UInt8[np.ndarray, "h w"], true: UInt8[np.ndarray, "h w"]) -> float:
    """The root of the mean squared difference of two depth maps in 0..255, as ControlNet++ (arXiv 2404.07987) gives it.

    Raises:
        ValueError: the maps differ in size.
    """
    _check(pred, true)
    return float(np.sqrt(np.mean((pred.astype(np.float64) - true) ** 2)))


def normal_angles(pred: Float[np.ndarray, "h w 3"], true: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """The angle between two unit normals at each pixel, in degrees: 0 to 180.

    Raises:
        ValueError: the maps differ in size.
    """
    _check(pred, true)
    # By the chord: exact for small angles, where the arc cosine is not.
    chord = np.linalg.norm(pred - true, axis=-1)
    return np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))


def mean_iou(pred: UInt8[np.ndarray, "h w"], true: UInt8[np.ndarray, "h w"], unknown: int = 255) -> float:
    """The mean over classes of intersection over union, in [0, 1]; of the classes that the true map shows.

    A class that only the predicted one shows costs what it takes from the others: counted as a class, a few pixels of
    it would weigh as much as a sky. Pixels that are `unknown` in `true` are left out; 0.0 where that leaves none.

    Raises:
        ValueError: the maps differ in size.
    """
    _check(pred, true)
    known = true != unknown
    pred, true = pred[known], true[known]
    shown = np.unique(true)
    if not len(shown):
        return 0.0
    return float(np.mean([((pred == c) & (true == c)).sum() / ((pred == c) | (true == c)).sum() for c in shown]))


def _check(pred: np.ndarray, true: np.ndarray) -> None:
    if pred.shape != true.shape:
        raise ValueError(f"maps differ in size: {pred.shape} and {true.shape}")
