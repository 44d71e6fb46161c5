"""From prompt and control map to an image."""

from cnx.sampler.ddim import DDIM

__all__ = ["DDIM"]
