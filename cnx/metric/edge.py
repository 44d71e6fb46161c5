"""Edge maps compared."""

import cv2
import numpy as np
from jaxtyping import Bool


def edge_f1(pred: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"], tolerance: float) -> float:
    """F1 of predicted edge pixels against true ones, in [0, 1].

    Precision is the share of `pred` pixels within `tolerance` of a true one, recall the share of `true` pixels within
    `tolerance` of a predicted one. Distance is Euclidean between pixel centres, in pixels: 1 reaches the four direct
    neighbours, 1.5 the diagonal ones too. 0 is pixel-exact, as ControlNet++ (arXiv 2404.07987) reports canny F1.
    Two empty maps agree (1.0); an empty map and one with edges do not (0.0). One pixel may vouch for several: this is
    dilation, not the one-to-one matching of the BSDS boundary benchmark.

    Raises:
        ValueError: the maps differ in size.
    """
    if pred.shape != true.shape:
        raise ValueError(f"edge maps differ in size: {pred.shape} and {true.shape}")
    if not pred.any() or not true.any():
        return float(pred.any() == true.any())
    precision = float(_near(true, tolerance)[pred].mean())
    recall = float(_near(pred, tolerance)[true].mean())
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def _near(edges: Bool[np.ndarray, "h w"], tolerance: float) -> Bool[np.ndarray, "h w"]:
    if tolerance <= 0:
        return edges
    distance = cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= tolerance + 1e-4  # the transform is float32: sqrt(2) must not fall outside 1.4142135
