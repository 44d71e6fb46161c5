"""A Stable Diffusion of toy size."""

from typing import Any, cast

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn

from cnx.base import Base


def toy_base(scheduler: DDPMScheduler, text_encoder: nn.Module | None = None) -> Base:
    """Random weights of torch's generator; 32 px pictures, 4×4 latents, text of width 8 and no tokenizer."""
    return Base(
        # Four sizes, so that the scale from pixels to latents is 8.
        vae=AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=2,
        ),
        text_encoder=cast(Any, text_encoder or nn.Module()),
        tokenizer=cast(Any, None),
        unet=UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=scheduler,
    )
