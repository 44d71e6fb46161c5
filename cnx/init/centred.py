"""A start from which a map's background is taken for what it is: nothing."""

from collections.abc import Callable, Sequence

import torch
from diffusers import ModelMixin

from cnx.base import Base
from cnx.errors import InputError


class Centred:
    """Start a branch as `start` does, with a hint encoder that answers the maps' background as it answers black.

    Of the first convolution's bias b, what the background gives is taken away: b - Σ w·background, over the kernel.
    It centres the input (LeCun et al., Efficient BackProp, 1998, section 4.3) by a weight that the branch has anyway, so
    that it stays an ordinary ControlNet.

    Args:
        start: another init.
        background: red, green and blue of it in [0, 1], one after another for each control map.

    Raises:
        InputError: numbers outside [0, 1], or not as many as the branch has channels of maps.
    """

    def __init__(self, start: Callable[[Base, ModelMixin], None], background: Sequence[float]) -> None:
        self.start, self.background = start, tuple(background)
        if any(not 0 <= value <= 1 for value in self.background):
            raise InputError(f"init.background={list(self.background)}: red, green and blue lie in [0, 1]")

    @torch.no_grad()
    def __call__(self, base: Base, branch: ModelMixin) -> None:
        self.start(base, branch)
        first: torch.nn.Conv2d = branch.controlnet_cond_embedding.conv_in  # pyright: ignore
        if len(self.background) != first.in_channels:
            raise InputError(
                f"init.background={list(self.background)}: must be {first.in_channels} numbers, red, green and blue of"
                " each control map"
            )
        assert first.bias is not None
        first.bias -= first.weight.sum((2, 3)) @ first.weight.new_tensor(self.background)
