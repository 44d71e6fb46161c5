"""What a training step minimises."""

from cnx.objective.denoise import Denoise

__all__ = ["Denoise"]
