"""What a training step minimises."""

from cnx.objective.denoise import Denoise
from cnx.objective.min_snr import MinSNR

__all__ = ["Denoise", "MinSNR"]
