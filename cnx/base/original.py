"""The original's names of a base's weights, as CompVis and Stability published them in one file.

`unet_names`, `vae_names`, `clip_names` and `open_clip_names` take all names of one of our modules' state dicts, of any
widths and depths, and give each one's name in the original's, without the prefix that the part has there.
`from_original` and `to_original` carry the tensors across, which are the same but for two attentions' shapes.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Where the parts lie in one file.
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
OLDER_CLIP = "cond_stage_model.transformer."

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_names(names: Collection[str]) -> dict[str, str]:
    """UNet2DConditionModel's names, or those of its encoder alone, to the original UNetModel's.

    Raises KeyError for a name that the original has no place for.
    """
    resnets = [name.split(".") for name in names if name.startswith("down_blocks.0.resnets.")]
    # A level: its resnets, and one place to change the side.
    step = 2 + max((int(parts[3]) for parts in resnets), default=-1)
    attended = {name.split(".")[1] for name in names if re.match(r"up_blocks\.\d+\.attentions\.", name)}

    def renamed(name: str) -> str:
        match name.split("."):
            case ["time_embedding", layer, end]:
                return f"time_embed.{ {'linear_1': 0, 'linear_2': 2}[layer] }.{end}"
            case ["conv_in", end]:
                return f"input_blocks.0.0.{end}"
            case ["conv_norm_out", end]:
                return f"out.0.{end}"
            case ["conv_out", end]:
                return f"out.2.{end}"
            case ["down_blocks", level, "resnets", layer, part, end]:
                return f"input_blocks.{1 + int(level) * step + int(layer)}.0.{UNET_RESNET[part]}.{end}"
            case ["down_blocks", level, "attentions", layer, *rest]:
                return f"input_blocks.{1 + int(level) * step + int(layer)}.1.{'.'.join(rest)}"
            case ["down_blocks", level, "downsamplers", "0", "conv", end]:
                return f"input_blocks.{(1 + int(level)) * step}.0.op.{end}"
            case ["mid_block", "resnets", layer, part, end]:
                return f"middle_block.{2 * int(layer)}.{UNET_RESNET[part]}.{end}"
            case ["mid_block", "attentions", "0", *rest]:
                return f"middle_block.1.{'.'.join(rest)}"
            # The decoder has one resnet more on each level, and changes the side within the last one's place.
            case ["up_blocks", level, "resnets", layer, part, end]:
                return f"output_blocks.{int(level) * step + int(layer)}.0.{UNET_RESNET[part]}.{end}"
            case ["up_blocks", level, "attentions", layer, *rest]:
                return f"output_blocks.{int(level) * step + int(layer)}.1.{'.'.join(rest)}"
            case ["up_blocks", level, "upsamplers", "0", "conv", end]:
                return f"output_blocks.{(1 + int(level)) * step - 1}.{1 + (level in attended)}.conv.{end}"
        raise KeyError(name)

    return {name: renamed(name) for name in names}


def vae_names(names: Collection[str]) -> dict[str, str]:
    """AutoencoderKL's names to the original's. Raises KeyError for a name that the original has no place for."""
    last = max(int(name.split(".")[2]) for name in names if name.startswith("decoder.up_blocks."))

    def renamed(name: str) -> str:
        match name.split("."):
            case [("quant_conv" | "post_quant_conv"), _] | [_, ("conv_in" | "conv_out"), _]:
                return name
            case [side, "conv_norm_out", end]:
                return f"{side}.norm_out.{end}"
            case ["encoder", "down_blocks", level, "resnets", layer, part, end]:
                return f"encoder.down.{level}.block.{layer}.{shortcut(part)}.{end}"
            case ["encoder", "down_blocks", level, "downsamplers", "0", "conv", end]:
                return f"encoder.down.{level}.downsample.conv.{end}"
            case ["decoder", "up_blocks", level, "resnets", layer, part, end]:
                return f"decoder.up.{last - int(level)}.block.{layer}.{shortcut(part)}.{end}"
            case ["decoder", "up_blocks", level, "upsamplers", "0", "conv", end]:
                return f"decoder.up.{last - int(level)}.upsample.conv.{end}"
            case [side, "mid_block", "resnets", layer, part, end]:
                return f"{side}.mid.block_{int(layer) + 1}.{shortcut(part)}.{end}"
            case [side, "mid_block", "attentions", "0", *part, end]:
                return f"{side}.mid.attn_1.{VAE_ATTENTION['.'.join(part)]}.{end}"
        raise KeyError(name)

    def shortcut(part: str) -> str:
        return "nin_shortcut" if part == "conv_shortcut" else part

    return {name: renamed(name) for name in names}


def clip_names(names: Collection[str]) -> dict[str, str]:
    """CLIPTextModel's names to those in Stable Diffusion 1's file: the same, but for a prefix of some versions."""
    return {name: name.removeprefix("text_model.") for name in names}


def open_clip_names(names: Collection[str]) -> dict[str, str]:
    """CLIPTextModel's names to those of OpenCLIP's text tower, in Stable Diffusion 2's file.

    q, k and v of a layer are all in its `attn.in_proj_weight` and `attn.in_proj_bias`, one below the other; three names
    have the same one.
    """

    def renamed(name: str) -> str:
        match name.removeprefix("text_model.").split("."):
            case ["embeddings", "token_embedding", end]:
                return f"token_embedding.{end}"
            case ["embeddings", "position_embedding", "weight"]:
                return "positional_embedding"
            case ["final_layer_norm", end]:
                return f"ln_final.{end}"
            case ["encoder", "layers", layer, "self_attn", "q_proj" | "k_proj" | "v_proj", end]:
                return f"transformer.resblocks.{layer}.attn.in_proj_{end}"
            case ["encoder", "layers", layer, *part, end]:
                return f"transformer.resblocks.{layer}.{OPEN_CLIP_LAYER['.'.join(part)]}.{end}"
        raise KeyError(name)

    return {name: renamed(name) for name in names}


def from_original(weights: Mapping[str, Tensor], names: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
    """Our state dict out of the original's; `names` from one of the functions above.

    Raises KeyError for a weight that is not there.
    """
    found = {name: weights[prefix + original] for name, original in names.items()}
    for name, tensor in found.items():
        if ".attn.in_proj_" in names[name]:
            q, k, v = tensor.chunk(3)
            found[name] = {"q": q, "k": k, "v": v}[name.split(".")[-2][0]]
        elif ".mid.attn_1." in names[name] and tensor.ndim == 4:
            found[name] = tensor[:, :, 0, 0]  # a linear layer, written as a 1×1 convolution
    return found


def to_original(weights: Mapping[str, Tensor], names: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
    """The original's state dict out of ours; the inverse of `from_original`."""
    renamed: dict[str, Tensor] = {}
    for name, original in names.items():
        tensor = weights[name]
        if ".attn.in_proj_" in original:
            layer, _, end = name.rpartition("self_attn.")[0], *name.rsplit(".", 1)
            tensor = torch.cat([weights[f"{layer}self_attn.{part}_proj.{end}"] for part in "qkv"])
        elif ".mid.attn_1." in original and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        renamed[prefix + original] = tensor
    return renamed


def text_encoder_names(names: Collection[str], weights: Collection[str]) -> tuple[dict[str, str], str]:
    """The names and prefix of a text encoder as they are in a file with the names `weights`; CLIP's where none is."""
    if any(name.startswith(OPEN_CLIP) for name in weights):
        return open_clip_names(names), OPEN_CLIP
    older = OLDER_CLIP + "embeddings.token_embedding.weight" in weights
    return clip_names(names), OLDER_CLIP if older else CLIP


def encoder_settings(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """What the weights of an original UNet's encoder, or of a ControlNet's, tell of its settings in diffusers' words.

    That is all but the number of heads and of normalisation groups. Raises KeyError if they are none.
    """
    weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    levels = list(_levels(weights))
    attention = next(iter(sorted(n for n in weights if n.endswith(".attn2.to_k.weight"))))
    return {
        "in_channels": weights["input_blocks.0.0.weight"].shape[1],
        "block_out_channels": [_width(weights, level[0]) for level in levels],
        "layers_per_block": len(levels[0]),
        "down_block_types": [
            "CrossAttnDownBlock2D" if f"input_blocks.{level[0]}.1.norm.weight" in weights else "DownBlock2D"
            for level in levels
        ],
        "cross_attention_dim": weights[attention].shape[1],
        "use_linear_projection": weights["middle_block.1.proj_in.weight"].ndim == 2,
    }


def _levels(weights: Mapping[str, Tensor]) -> Iterator[list[int]]:
    """The resnets' places in `input_blocks` level by level; each ends where the side is halved."""
    level: list[int] = []
    for place in range(1, 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("input_blocks."))):
        if f"input_blocks.{place}.0.op.weight" in weights:
            yield level
            level = []
        else:
            level.append(place)
    yield level


def _width(weights: Mapping[str, Tensor], place: int) -> int:
    return weights[f"input_blocks.{place}.0.in_layers.2.weight"].shape[0]


def schedule_buffers(betas: Tensor) -> dict[str, Tensor]:
    """What the original's LatentDiffusion keeps of its noise schedule, without which it refuses a file.

    Ho et al., arXiv 2006.11239: ᾱ_t = Π α_s (equation 4), and the posterior's variance and coefficients (equation 7).
    """
    beta = betas.double().numpy()
    alpha, alpha_bar = 1 - beta, np.cumprod(1 - beta)
    before = np.append(1.0, alpha_bar[:-1])
    variance = beta * (1 - before) / (1 - alpha_bar)
    buffers = {
        "betas": beta,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(alpha_bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alpha_bar),
        "log_one_minus_alphas_cumprod": np.log(1 - alpha_bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alpha_bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alpha_bar - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": beta * np.sqrt(before) / (1 - alpha_bar),
        "posterior_mean_coef2": (1 - before) * np.sqrt(alpha) / (1 - alpha_bar),
    }
    return {name: torch.from_numpy(values).float() for name, values in buffers.items()}
