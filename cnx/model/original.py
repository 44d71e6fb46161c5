"""The original's names of a ControlNet's weights (lllyasviel/ControlNet, cldm), and what they tell of its settings."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from cnx.base.original import encoder_settings, unet_names

# Where a ControlNet lies in a file that may hold its base too. Some files of it alone leave it out.
CONTROL = "control_model."


def control_names(names: Collection[str]) -> dict[str, str]:
    """ControlNetModel's names, of any widths and depths, to those of the original's ControlNet, without CONTROL.

    The tensors are the same on both sides. Raises KeyError for a name that the original has no place for.
    """
    hint = "controlnet_cond_embedding.blocks."
    last = 1 + max((int(name.split(".")[2]) for name in names if name.startswith(hint)), default=-1)
    renamed: dict[str, str] = {}
    for name in names:
        match name.split("."):
            # Each convolution but the last is followed by a SiLU, which has a place too.
            case ["controlnet_cond_embedding", "conv_in", end]:
                renamed[name] = f"input_hint_block.0.{end}"
            case ["controlnet_cond_embedding", "blocks", layer, end]:
                renamed[name] = f"input_hint_block.{2 * (int(layer) + 1)}.{end}"
            case ["controlnet_cond_embedding", "conv_out", end]:
                renamed[name] = f"input_hint_block.{2 * (last + 1)}.{end}"
            case ["controlnet_down_blocks", layer, end]:
                renamed[name] = f"zero_convs.{layer}.0.{end}"
            case ["controlnet_mid_block", end]:
                renamed[name] = f"middle_block_out.0.{end}"
    return unet_names([name for name in names if name not in renamed]) | renamed


def control_settings(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """ControlNetModel's settings, as far as the original's weights tell them. Raises KeyError if they are none."""
    settings = encoder_settings(weights, prefix)
    # A convolution, then two for each halving, the second of which widens.
    hint = {
        int(name.split(".")[-2]): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix + "input_hint_block.") and tensor.ndim == 4
    }
    widening = [0, *range(4, max(hint), 4)]
    settings["conditioning_channels"] = hint[0].shape[1]
    settings["conditioning_embedding_out_channels"] = [hint[place].shape[0] for place in widening]
    return settings


def published_heads(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The heads of attention, which no weight tells, as Stable Diffusion 1 and 2 have them: 8, or one for 64 channels.

    diffusers calls their number `attention_head_dim`.
    """
    if settings["use_linear_projection"]:
        return {"attention_head_dim": [width // 64 for width in settings["block_out_channels"]]}
    return {"attention_head_dim": 8}
