"""Figures made from saved results only."""

from cnx.report.drawings import drawings_page
from cnx.report.grid import grid_over_time, sample_grid, save_image

__all__ = ["drawings_page", "grid_over_time", "sample_grid", "save_image"]
