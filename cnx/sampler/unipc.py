"""UniPC."""

from dataclasses import dataclass

from diffusers import UniPCMultistepScheduler

from cnx.sampler.sampler import Sampler


@dataclass
class UniPC(Sampler):
    """Sampling by UniPC of order 2 (Zhao et al., arXiv 2302.04867), as ControlNet++ measures its models."""

    scheduler = UniPCMultistepScheduler
