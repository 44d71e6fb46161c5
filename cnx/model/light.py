"""Branches that are no copy of the base's encoder: ControlNet-lite and ControlNet-MLP."""

from typing import Any, Literal

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn

from cnx.base import Base
from cnx.errors import InputError
from cnx.model.controlled import Controlled, hint_widths


class Light(Controlled):
    """A locked base under a light encoder that is trained from nothing, with all links.

    `kernel_size` 3 is ControlNet-lite, the copy replaced by single convolution layers (arXiv 2302.05543, section 4.2);
    1 is ControlNet-MLP, pixel-wise layers with average pooling (lllyasviel/ControlNet, discussion 188). Both are given
    there in words and figures only: this is a reading of them. `hint_channels` and `maps` as in Full.

    diffusers' ControlNetModel cannot express this branch. It is saved as safetensors and a config.json of its own kind,
    LightBranch, which this class loads and diffusers' pipelines do not.
    """

    def __init__(self, base: Base, hint_channels: tuple[int, ...], kernel_size: Literal[1, 3], maps: int = 1) -> None:
        if kernel_size not in (1, 3):
            raise InputError(f"model.kernel_size={kernel_size}: must be 1 or 3")
        # The base's skips: its first convolution, each resnet, each downsampling.
        widths, strides = [base.unet.conv_in.out_channels], [1]
        blocks: Any = base.unet.down_blocks
        for block in blocks:
            widths += [resnet.out_channels for resnet in block.resnets]
            strides += [1] * len(block.resnets)
            if block.downsamplers:
                widths += [block.downsamplers[0].out_channels]
                strides += [2]
        hints = list(hint_widths(base, hint_channels))
        branch = LightBranch(base.unet.conv_in.in_channels, widths, strides, hints, kernel_size, 3 * maps)
        super().__init__(base, branch)


class LightBranch(ModelMixin, ConfigMixin):
    """One convolution and a SiLU for each of the base's skips and for its middle; zero convolutions to the base.

    As in a copy, the first convolution takes the noisy latents, and the encoded control map is added to it. Timestep
    and prompt are not seen. Called as a ControlNetModel is.

    Args:
        in_channels: of the latents.
        widths: channels of each skip; the middle has those of the last.
        strides: 2 where the base's encoder halves the side, else 1.
        hint_channels: widths of the hint encoder.
        kernel_size: of every convolution, 1 or 3.
        conditioning_channels: of the control maps, 3 for each.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        widths: list[int],
        strides: list[int],
        hint_channels: list[int],
        kernel_size: int,
        conditioning_channels: int = 3,
    ) -> None:
        super().__init__()
        layers = zip([in_channels, *widths], widths, strides, strict=False)
        self.down_blocks = nn.ModuleList(_convolution(a, b, stride, kernel_size) for a, b, stride in layers)
        self.mid_block = _convolution(widths[-1], widths[-1], 1, kernel_size)
        self.controlnet_cond_embedding = HintEncoder(widths[0], hint_channels, kernel_size, conditioning_channels)
        self.controlnet_down_blocks = nn.ModuleList(_zeroed(nn.Conv2d(width, width, 1)) for width in widths)
        self.controlnet_mid_block = _zeroed(nn.Conv2d(widths[-1], widths[-1], 1))

    def forward(
        self,
        x_t: Float[Tensor, "b 4 h w"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b n d"],
        control: Float[Tensor, "b m H W"],
        return_dict: bool = False,
    ) -> tuple[list[Tensor], Float[Tensor, "b c h' w'"]]:
        """The values of the skips, in the encoder's order, and of the middle."""
        first, *others = self.down_blocks
        features = [first(x_t) + self.controlnet_cond_embedding(control)]
        for layer in others:
            features.append(layer(F.silu(features[-1])))
        middle = self.mid_block(F.silu(features[-1]))
        # Without skips' convolutions, as in a small-scale training, there are none of their values.
        links = zip(self.controlnet_down_blocks, features, strict=False)
        return [link(F.silu(feature)) for link, feature in links], self.controlnet_mid_block(F.silu(middle))


class HintEncoder(nn.Module):
    """A control map to features an eighth its side; laid out as the released code's, the last convolution zero."""

    def __init__(self, width: int, hint_channels: list[int], kernel_size: int, conditioning_channels: int) -> None:
        super().__init__()
        self.conv_in = _convolution(conditioning_channels, hint_channels[0], 1, kernel_size)
        blocks = []
        for narrow, wide in zip(hint_channels, hint_channels[1:], strict=False):
            blocks += [_convolution(narrow, narrow, 1, kernel_size), _convolution(narrow, wide, 2, kernel_size)]
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = _zeroed(_convolution(hint_channels[-1], width, 1, kernel_size))

    def forward(self, control: Float[Tensor, "b m H W"]) -> Float[Tensor, "b c h w"]:
        features = F.silu(self.conv_in(control))
        for block in self.blocks:
            features = F.silu(block(features))
        return self.conv_out(features)


def _convolution(narrow: int, wide: int, stride: int, kernel_size: int) -> nn.Module:
    """A convolution that divides the side by `stride`; one that sees single pixels pools them first."""
    if kernel_size == 1 and stride > 1:
        return nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(narrow, wide, 1))
    return nn.Conv2d(narrow, wide, kernel_size, stride, padding=kernel_size // 2)


def _zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
