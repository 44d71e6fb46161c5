"""DDIM."""

from dataclasses import dataclass

from diffusers import DDIMScheduler

from cnx.sampler.sampler import Sampler


@dataclass
class DDIM(Sampler):
    """Sampling by DDIM (Song et al., arXiv 2010.02502, eq. 12 with eta = 0: only the noise given is random)."""

    scheduler = DDIMScheduler
