"""How maps of lines and maps of tones are compared, whichever condition drew them."""

import numpy as np
from jaxtyping import Bool

from cnx.condition.condition import Agreement, Pixels
from cnx.metric import edge_f1, ssim


def compare_edges(drawn: Pixels, wanted: Pixels, published_tolerance: float = 0.0) -> Agreement:
    """F1 of white pixels.

    Fidelity: a line may be off by 1 px per 128 px of the shorter side, at least 1: an eye sees no disobedience in
    that. Published: it may be off by `published_tolerance` px.
    """
    pred, true = _lines(drawn), _lines(wanted)
    tolerance = max(1, round(min(wanted.shape[:2]) / 128))
    return Agreement(edge_f1(pred, true, tolerance), edge_f1(pred, true, published_tolerance))


def compare_tones(drawn: Pixels, wanted: Pixels) -> Agreement:
    """SSIM of grey maps; below 0 it is no fidelity at all."""
    alike = ssim(drawn[:, :, :1], wanted[:, :, :1])
    return Agreement(max(alike, 0.0), alike)


def _lines(control_map: Pixels) -> Bool[np.ndarray, "h w"]:
    # A resize makes greys (a line of 1 px, shrunk four times, is 64), and so does JPEG (rarely above 32).
    return control_map.max(axis=2) > 32
