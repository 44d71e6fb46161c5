"""The paper's ablation of the zero convolutions."""

from itertools import chain
from typing import Any

import torch
from diffusers import ControlNetModel, ModelMixin

from cnx.base import Base
from cnx.errors import InputError
from cnx.init.sd_copy import SDCopy


class GaussianZeroConv:
    """Copy the base's encoder into the branch, and draw the zero convolutions from N(0, std²), their biases zero.

    arXiv 2302.05543, section 4.2, which gives no `std`. Zero convolutions are those of the links, as far as they are
    connected, and the hint encoder's last. A light branch, which cannot be copied into, keeps its own random start in
    all else.
    """

    def __init__(self, std: float = 0.01) -> None:
        if not std >= 0:
            raise InputError(f"init.std={std}: a standard deviation is at least 0")
        self.std = std

    @torch.no_grad()
    def __call__(self, base: Base, branch: ModelMixin) -> None:
        if isinstance(branch, ControlNetModel):
            SDCopy()(base, branch)
        parts: Any = branch
        links = (parts.controlnet_down_blocks, parts.controlnet_mid_block)
        for parameter in chain(*(part.parameters() for part in (*links, parts.controlnet_cond_embedding.conv_out))):
            if parameter.dim() > 1:
                parameter.normal_(0, self.std)
            else:
                parameter.zero_()
