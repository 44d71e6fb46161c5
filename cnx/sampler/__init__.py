"""From prompt and control map to an image."""

from cnx.sampler.control import Control, GuessWeights, equal_weights, resolution_weights
from cnx.sampler.ddim import DDIM
from cnx.sampler.sampler import Picture, Sampler
from cnx.sampler.unipc import UniPC

__all__ = [
    "DDIM",
    "Control",
    "GuessWeights",
    "Picture",
    "Sampler",
    "UniPC",
    "equal_weights",
    "resolution_weights",
]
