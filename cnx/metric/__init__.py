"""Numbers that say how well a sample obeys its control map, and when a model began to."""

from cnx.metric.convergence import Convergence, find_convergence
from cnx.metric.edge import edge_f1
from cnx.metric.fidelity import calibrate, is_degenerate
from cnx.metric.likeness import colour_overlap, psnr, ssim
from cnx.metric.plateau import Plateau, find_plateau

__all__ = [
    "Convergence",
    "Plateau",
    "calibrate",
    "colour_overlap",
    "edge_f1",
    "find_convergence",
    "find_plateau",
    "is_degenerate",
    "psnr",
    "ssim",
]
