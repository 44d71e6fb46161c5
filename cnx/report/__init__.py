"""Figures made from saved results only."""

from cnx.report.grid import grid_over_time, sample_grid, save_image

__all__ = ["grid_over_time", "sample_grid", "save_image"]
