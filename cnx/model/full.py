"""ControlNet as published: every skip and the middle are linked, the base is locked."""

import torch
from diffusers import ControlNetModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from cnx.base import Base
from cnx.model.residuals import Residuals


class Full(nn.Module):
    """A locked base and a trainable control branch with all links (ControlNet, arXiv 2302.05543, section 3.2).

    y = F(x; θ) + Z(F(x + Z(c; θz1); θc); θz2). `hint_channels` are the widths of the hint encoder, from the map's size
    down to the latents' (the released code's eight 3×3 convolutions with SiLU, the last one zero). The branch is built
    with the base's shape; an init decides its weights.
    """

    def __init__(self, base: Base, hint_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.base = base
        self.branch = ControlNetModel.from_unet(
            base.unet, conditioning_embedding_out_channels=tuple(hint_channels), load_weights_from_unet=False
        )
        self.branch.requires_grad_(True)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def train(self, mode: bool = True) -> "Full":
        """Switch the branch alone: a locked base stays in eval mode."""
        super().train(mode)
        self.base.eval()
        return self

    def control(
        self,
        x_t: Float[Tensor, "b 4 h w"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b n d"],
        control: Float[Tensor, "b 3 H W"],
    ) -> Residuals:
        """Run the control branch on control maps in [0, 1], eight times the latents' side."""
        control = control.contiguous(memory_format=torch.channels_last)
        down, mid = self.branch(x_t, t, text, control, return_dict=False)
        return Residuals(tuple(down), mid)

    def forward(
        self,
        x_t: Float[Tensor, "b 4 h w"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b n d"],
        control: Float[Tensor, "b 3 H W"],
        strength: float = 1.0,
    ) -> Float[Tensor, "b 4 h w"]:
        """The base's prediction under control; `strength` multiplies every link, and 0 is the base alone."""
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        if strength == 0:
            return self.base.unet(x_t, t, text).sample
        links = self.control(x_t, t, text, control)
        if strength != 1:
            links = links.scaled(strength)
        return self.base.unet(
            x_t,
            t,
            text,
            down_block_additional_residuals=links.down,
            mid_block_additional_residual=links.mid,
        ).sample
