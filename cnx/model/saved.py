"""Control branches on disk."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from cnx.errors import InputError


def read_branch(folder: Path, like: ModelMixin) -> dict[str, Tensor]:
    """The weights, in float32, of the branch that is saved in `folder` for a model with a branch like `like`.

    Raises InputError if there is none, or if its kind or its settings are not those of `like`; the line names them.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder}: no config.json, so no control branch is saved there")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        kind = saved["_class_name"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: says nothing of a model in diffusers format; save the branch there again") from error
    wanted_kind = type(like).__name__
    if kind != wanted_kind:
        raise InputError(f"{folder}: holds a {kind}, and this model's branch is a {wanted_kind}; give the other one")
    settings: Any = like.config
    wanted = {key: _plain(value) for key, value in settings.items() if key[0] != "_"}
    different = [key for key in sorted(wanted.keys() & saved.keys()) if saved[key] != wanted[key]]
    if different:
        list_of = "; ".join(f"{key} {saved[key]} there, {wanted[key]} here" for key in different)
        raise InputError(f"{folder}: that branch does not fit this base and model: {list_of}")
    try:
        read: Any = type(like).from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
        weights = read.state_dict()
    except Exception as error:  # diffusers, safetensors and pickle each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: cannot be loaded ({reason}); save the branch there again") from error
    return weights


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
