"""Numbers that say how well a sample obeys its control map, and when a model began to."""

from cnx.metric.convergence import Convergence, find_convergence
from cnx.metric.edge import edge_f1
from cnx.metric.fidelity import calibrate, is_degenerate
from cnx.metric.keypoint import Point, match_points
from cnx.metric.likeness import colour_overlap, psnr, ssim
from cnx.metric.plateau import Plateau, find_plateau
from cnx.metric.surface import depth_rmse, mean_iou, normal_angles

__all__ = [
    "Convergence",
    "Plateau",
    "Point",
    "calibrate",
    "colour_overlap",
    "depth_rmse",
    "edge_f1",
    "find_convergence",
    "find_plateau",
    "is_degenerate",
    "psnr",
    "ssim",
    "match_points",
    "mean_iou",
    "normal_angles",
]
