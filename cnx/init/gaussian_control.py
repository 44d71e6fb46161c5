"""The start of attempts 5, 6 and 7: a branch of Gaussian noise on a pretrained base."""

import torch
from diffusers import ModelMixin

from cnx.base import Base
from cnx.errors import InputError


class GaussianControl:
    """Draw every tensor of the branch named weight from N(0, std²), norms and zero convolutions too; zero every bias.

    `std` is 0.01 in the attempts.
    """

    def __init__(self, std: float = 0.01) -> None:
        if not std >= 0:
            raise InputError(f"init.std={std}: a standard deviation is at least 0")
        self.std = std

    @torch.no_grad()
    def __call__(self, base: Base, branch: ModelMixin) -> None:
        for name, parameter in branch.named_parameters():
            if name.endswith("weight"):
                parameter.normal_(0, self.std)
            elif name.endswith("bias"):
                parameter.zero_()
