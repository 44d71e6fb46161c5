"""The start of attempts 1 and 2: nothing is pretrained but the text encoder."""

from collections.abc import Sequence
from typing import Literal

from diffusers import ModelMixin

from cnx.base import Base
from cnx.errors import InputError


class Scratch:
    """Draw parts of the base anew as their library initialises them; the branch keeps its own random start.

    `random` names the parts: UNet and VAE in the attempts' notebooks, where the base stayed locked, so that nothing
    could repair it. With no part named the whole base is kept, and only the branch is new. The branch is as a fresh one
    is: random, with its zero convolutions at zero.
    """

    def __init__(self, random: Sequence[Literal["unet", "vae"]] = ("unet", "vae")) -> None:
        if isinstance(random, str) or not set(random) <= {"unet", "vae"}:
            raise InputError(f"init.random={random}: must be a list of unet and vae, or [] for none")
        self.random = tuple(random)

    def __call__(self, base: Base, branch: ModelMixin) -> None:
        for name in self.random:
            part = getattr(base, name)
            drawn = type(part).from_config(part.config).state_dict()
            # In half precision, as the run will save it, so that a resumed run has the same base to the bit.
            part.load_state_dict({key: tensor.half() for key, tensor in drawn.items()})
        if self.random:
            base.path = None
