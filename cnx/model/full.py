"""ControlNet as published, and its two other modes of training."""

from typing import get_args

from diffusers import ControlNetModel

from cnx.base import Base
from cnx.errors import InputError
from cnx.model.controlled import Controlled, Unlock, hint_widths


class Full(Controlled):
    """A locked base and a trainable copy of its encoder with all links (ControlNet, arXiv 2302.05543, section 3.2).

    `hint_channels` are the widths of the hint encoder, from the map's size down to the latents'; it takes `maps`
    control maps, stacked in the channels. It is the released code's, eight 3×3 convolutions with SiLU, the last one
    zero. The paper's (four 4×4 convolutions with stride 2 and ReLU, 16, 32, 64 and 128 wide) is not offered: diffusers'
    ControlNetModel has no place for it. The branch is built with the base's shape; an init decides its weights.
    """

    def __init__(
        self, base: Base, hint_channels: tuple[int, ...], unlocked_lr: float | None = None, maps: int = 1
    ) -> None:
        branch = ControlNetModel.from_unet(
            base.unet,
            conditioning_embedding_out_channels=hint_widths(base, hint_channels),
            load_weights_from_unet=False,
            conditioning_channels=3 * maps,
        )
        super().__init__(base, branch, unlocked_lr)


class SmallScale(Full):
    """Only the middle is linked; the base is locked (arXiv 2302.05543v1, small-scale training).

    The skips' zero convolutions are neither run nor trained until `link("all")`; the released code runs them and drops
    what they give. Saved as an ordinary ControlNet whose skips are at zero.
    """

    def __init__(self, base: Base, hint_channels: tuple[int, ...], maps: int = 1) -> None:
        super().__init__(base, hint_channels, maps=maps)
        self.link("mid")


class LargeScale(Full):
    """All links, and the base is trained too (arXiv 2302.05543v1, large-scale training).

    `unlock` as in `Controlled.unlock`: "decoder", "all", or None until a phase unlocks; `unlocked_lr` is the unlocked
    part's learning rate.
    """

    def __init__(
        self,
        base: Base,
        hint_channels: tuple[int, ...],
        unlock: Unlock | None,
        unlocked_lr: float | None,
        maps: int = 1,
    ) -> None:
        if unlock not in (*get_args(Unlock), None):
            raise InputError(
                f"model.unlock={unlock}: must be decoder, all, or null for nothing until a phase unlocks it"
            )
        super().__init__(base, hint_channels, unlocked_lr, maps)
        self.unlock(unlock)
