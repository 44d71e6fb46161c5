"""Weights in one file: safetensors, and the pickles that torch writes (.ckpt, .pth, .pt, .bin)."""

import os
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cnx.errors import InputError

# What a file is that holds such a name; the first that fits.
KINDS = {
    r"lora_controlnet$": "a Control-LoRA",
    r"(^|[._])lora[._]|hada_w1|lokr_w1": "a LoRA",
    r"^conditioner\.embedders\.": "an SDXL base",
    r"^(control_model\.)?label_emb\.\d|^add_embedding\.": "a ControlNet for SDXL",
    r"^model\.diffusion_model\.label_emb\.": "an SDXL base",
    r"joint_blocks\.|double_blocks\.|transformer_blocks\.\d+\.norm1_context\.": "an SD 3 or Flux model",
    r"^difference$": "a ControlNet as its difference from a base (give the whole one)",
    r"(^|control_model\.)input_hint_block\.|^controlnet_cond_embedding\.": "a ControlNet",
    r"^model\.diffusion_model\.": "a whole Stable Diffusion",
    r"^(adapter\.)?body\.\d": "a T2I-Adapter",
    r"^(string_to_param|emb_params)$": "a textual inversion",
    r"^(first_stage_model\.)?(encoder\.down|encoder\.down_blocks)\.": "a VAE",
    r"^(input_blocks|down_blocks)\.": "a UNet",
}


def kind_of(names: Collection[str]) -> str:
    """What the file with tensors of these names is, in words: "a LoRA", "a whole Stable Diffusion", ..."""
    for pattern, kind in KINDS.items():
        if any(re.search(pattern, name) for name in names):
            return kind
    return "none of the kinds that cnx knows"


def weights_file(folder: Path, variant: str | None = None) -> Path | None:
    """The one file with the weights of a part in diffusers or transformers format; None if there is none."""
    middle = f".{variant}" if variant else ""
    stems = ("diffusion_pytorch_model", "model", "pytorch_model")
    files = [folder / f"{stem}{middle}.{end}" for end in ("safetensors", "bin") for stem in stems]
    return next((file for file in files if file.is_file()), None)


def read_weights(file: Path, trust: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of `file` as they are stored, without those around them, and its metadata: {name: text}.

    What kind of file it is, is seen by its first bytes. A pickle is read with weights_only, so that no code in it runs.
    `trust` is the setting that would let it run, "base.trust=true"; None: it is given, and all is read.

    Raises InputError for a file that is damaged, holds no weights, or needs code to run that is not trusted.
    """
    with file.open("rb") as opened:
        head = opened.read(64)
    if head[8:9] == b"{":
        return _read_safetensors(file)
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{file}: a pointer of git-lfs and no weights; fetch the file itself with git lfs pull")
    if not head.startswith((b"PK", b"\x80")):
        raise InputError(f"{file}: neither safetensors nor a pickle of torch's; fetch the file again")
    return _read_pickle(file, trust)


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{file}: cut off or damaged ({_short(error)}); fetch the file again") from error


def _read_pickle(file: Path, trust: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        mapped = zipfile.is_zipfile(file)  # older ones cannot be
        read: Any = torch.load(file, map_location="cpu", weights_only=trust is not None, mmap=mapped)
    except pickle.UnpicklingError as error:
        needed = re.search(r"(?:GLOBAL|class|function|global)s?:? `?([\w.]+\.[\w.]+)", str(error))
        if needed is None and "weights only load failed" not in str(error).lower():
            raise InputError(f"{file}: cut off or damaged ({_short(error)}); fetch the file again") from error
        more = needed.group(1) if needed else _short(error)
        raise InputError(
            f"{file}: a pickle that needs more than weights, {more}, and could run any code; take the .safetensors of"
            f" it, or where you trust it, give {trust}"
        ) from error
    except Exception as error:  # whatever a damaged archive or a trusted pickle raises
        raise InputError(f"{file}: cannot be read ({_short(error)}); fetch the file again") from error
    metadata = {}
    while isinstance(read, Mapping) and "state_dict" in read:
        metadata.update({name: text for name, text in read.items() if isinstance(text, str)})
        read = read["state_dict"]
    weights = {n: t for n, t in read.items() if isinstance(t, Tensor)} if isinstance(read, Mapping) else {}
    if not weights:
        raise InputError(f"{file}: holds no weights by name; give another file")
    return weights, metadata


def write_weights(weights: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write the tensors with their dtypes to `file`: safetensors where it is named so, else a pickle, as torch's.

    With `metadata` a pickle is {"state_dict": weights, **metadata}, which the original's loaders read too. The file is
    loaded back and compared before it takes its place: it is there whole and right, or not at all. Raises InputError if
    nothing can be written there, or what was written is not what is read.
    """
    stored = apart(weights)
    part = file.with_name(f".{file.name}.cnx-part")  # a name that nobody gives to a file of theirs
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            save_file(stored, part, {"format": "pt", **metadata})
        else:
            torch.save({"state_dict": stored, **metadata} if metadata else stored, part)
        check_same(stored, read_weights(part, trust="")[0], file)
        os.replace(part, file)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's is a RuntimeError
        raise InputError(f"{file}: cannot be written ({_short(error)}); give another place, or make room") from error
    finally:
        with suppress(OSError):  # below a file there is nothing to remove
            part.unlink()


def apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors each in memory of its own, as a file wants them: several may be views of one, or the same one."""
    stored: dict[str, Tensor] = {}
    held: set[int] = set()
    for name, tensor in weights.items():
        stored[name] = tensor = _alone(tensor, held)
        held.add(tensor.data_ptr())
    return stored


def check_same(written: Mapping[str, Tensor], read: Mapping[str, Tensor], place: Path) -> None:
    """Compare names, dtypes, shapes and bytes. Raises InputError, naming `place`, if any differs."""
    if written.keys() == read.keys() and all(_same(written[name], read[name]) for name in written):
        return
    raise InputError(f"{place}: reads otherwise than it was written, so nothing is kept; check the disk and try again")


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # As bytes: a weight that is no number is equal to none.
    a, b = (tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in (a, b))
    return torch.equal(a, b)


def _alone(tensor: Tensor, held: Collection[int]) -> Tensor:
    """The tensor in memory of its own, none of that which starts at `held`.

    Of a view, a pickle would hold the whole; and safetensors takes no memory twice.
    """
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.data_ptr() not in held else tensor.clone()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
