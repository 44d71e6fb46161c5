"""A base in one file, as CompVis and Stability published theirs and communities share them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor
from transformers import CLIPTextModel

from cnx.base.original import UNET, VAE, encoder_settings, from_original, text_encoder_names, unet_names, vae_names
from cnx.base.weights import kind_of, read_weights
from cnx.errors import InputError


def read_single_file(
    file: Path, architecture: Mapping[str, Any] | None, trust: bool, dtype: torch.dtype | None
) -> dict[str, Any]:
    """The parts of the base in `file`, as Base takes them.

    A moving average beside the plain weights (`model_ema`) is left: training goes on from the plain ones.

    Args:
        file: safetensors or a pickle with the original's names; a ControlNet together with its base is one, too.
        architecture: what the file does not say: `unet`, `vae`, `text_encoder`, `tokenizer` and `scheduler`, each as
            Hydra instantiates it (conf/base/architecture).
        trust: read a pickle that can run code.
        dtype: of the weights; None leaves each as it is stored.

    Raises InputError if the file cannot be read, is something else, or is of another architecture.
    """
    if architecture is None:
        raise InputError(f"base.path={file}: one file does not say how it is built; give base=sd15, sd21 or sd21_768")
    weights, _ = read_weights(file, trust=None if trust else "base.trust=true")
    kind = kind_of(weights)
    if not any(name.startswith(UNET) for name in weights) or "SD" in kind:
        raise InputError(f"base.path={file}: is {kind}; give a whole Stable Diffusion 1 or 2")
    with torch.device("meta"):  # shapes alone: the weights come from the file
        unet, vae = (instantiate(architecture[part], _convert_="all") for part in ("unet", "vae"))
    _check(file, weights, unet.config)
    try:
        _fill(unet, from_original(weights, unet_names(unet.state_dict()), UNET), dtype)
        _fill(vae, from_original(weights, vae_names(vae.state_dict()), VAE), dtype)
        text_encoder = _text_encoder(instantiate(architecture["text_encoder"], _convert_="all"), weights, dtype)
    except KeyError as error:
        raise InputError(f"base.path={file}: {error.args[0]} is not in it; give a whole Stable Diffusion") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"base.path={file}: does not fit this base's architecture: {reason}") from error
    return {
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": instantiate(architecture["tokenizer"], _convert_="all"),
        "unet": unet,
        "scheduler": instantiate(architecture["scheduler"], _convert_="all"),
    }


def check_channels(path: str, channels: int) -> None:
    """Raises InputError unless a UNet of so many input channels is given latents alone."""
    if channels != 4:
        kinds = {9: "an inpainting model", 8: "an InstructPix2Pix model", 5: "a depth model"}
        kind = kinds.get(channels, "another kind of model")
        raise InputError(
            f"base.path={path}: is {kind}, whose UNet takes {channels} channels; give a plain Stable Diffusion 1 or 2,"
            " which takes 4"
        )


def _check(file: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    try:
        told = encoder_settings(weights, UNET)
    except (KeyError, StopIteration, ValueError) as error:
        raise InputError(f"base.path={file}: its UNet is none of Stable Diffusion 1 or 2; give one of those") from error
    here = {key: list(settings[key]) if isinstance(told[key], list) else settings[key] for key in told}
    check_channels(str(file), told["in_channels"])
    different = "; ".join(f"{key} {told[key]} there, {here[key]} here" for key in told if told[key] != here[key])
    if different:
        fitting = {768: "base=sd15", 1024: "base=sd21 or base=sd21_768"}.get(told["cross_attention_dim"])
        other = told["cross_attention_dim"] != here["cross_attention_dim"]
        remedy = f"try {fitting}" if fitting and other else "give another file"
        raise InputError(f"base.path={file}: is not built as this base is: {different}; {remedy}")


def _fill(module: torch.nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    module.load_state_dict({name: tensor.to(dtype or tensor.dtype) for name, tensor in weights.items()}, assign=True)


def _text_encoder(settings: Any, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> CLIPTextModel:
    with torch.device("meta"):
        names = CLIPTextModel(settings).state_dict()
    found = from_original(weights, *text_encoder_names(names, weights))
    # It has buffers that are not among its weights, so that an empty one cannot simply be filled.
    text_encoder = CLIPTextModel(settings)
    _fill(text_encoder, found, dtype)
    return text_encoder
