"""Control branches on disk, in every format that they are shared in."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, ModelMixin
from huggingface_hub import snapshot_download
from torch import Tensor

from cnx.base import find, kind_of, read_weights, weights_file
from cnx.base.original import from_original
from cnx.errors import InputError
from cnx.model.original import CONTROL, control_names, control_settings, published_heads

# The metadata of one file that hold its settings, in JSON, where its weights do not tell them.
SETTINGS = "cnx_settings"
# Settings of a branch that change how it is computed, and not what.
PASSING = ("upcast_attention",)
# Published settings that neither weights nor metadata tell, by the name of the file: that one's links are averaged over
# the picture.
UNTOLD: dict[str, dict[str, Any]] = {"control_v11e_sd15_shuffle": {"global_pool_conditions": True}}


@dataclass(frozen=True)
class SavedBranch:
    """A control branch as it is stored.

    Attributes:
        kind: its class, "ControlNetModel" or a light branch's.
        settings: of that class.
        weights: by the class's own names, each in its stored dtype.
        told: the settings that are known for certain: all, or those that the weights of one file tell.
    """

    kind: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    told: frozenset[str]


def find_branch(path: str, option: str) -> Path:
    """The folder or file of the branch `path`: that itself, the `controlnet/` of a run folder, or fetched from the hub.

    `option` names the setting that gave it. Raises InputError if there is none.
    """
    found = find(path)
    if found is None and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        try:
            return Path(snapshot_download(path, allow_patterns=["config.json", "diffusion_pytorch_model.*"]))
        except Exception as error:  # the hub raises many kinds
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"{option}={path}: no such folder or file here, and not to be had from the hub ({reason})"
            ) from error
    if found is None:
        raise InputError(f"{option}={path}: no such folder or file; give a ControlNet or a run")
    if (found / "config.yaml").is_file() and not (found / "controlnet").is_dir():
        raise InputError(f"{found}: no controlnet/ there yet; finish the run with python run.py resume={found}")
    return found / "controlnet" if (found / "controlnet").is_dir() else found


def read_saved(place: Path, trust: str | None) -> SavedBranch:
    """The branch in `place`: a folder in diffusers format, or one file with the original's names or diffusers'.

    One file may hold its base too, which is left. `trust` as `read_weights` takes it. Raises InputError if there is no
    branch, if it is damaged, or something else; the line names what.
    """
    return _read_file(place, trust) if place.is_file() else _read_folder(place, trust)


def _read_folder(folder: Path, trust: str | None) -> SavedBranch:
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder}: no config.json, so no control branch is saved there")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind = settings["_class_name"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: says nothing of a model in diffusers format; save the branch there again") from error
    settings = {key: value for key, value in settings.items() if key[0] != "_"}
    weights = weights_file(folder) or weights_file(folder, "fp16")
    if weights is None:
        raise InputError(f"{folder}: no diffusion_pytorch_model.safetensors there; save the branch there again")
    return SavedBranch(kind, settings, read_weights(weights, trust)[0], frozenset(settings))


def _read_file(file: Path, trust: str | None) -> SavedBranch:
    weights, metadata = read_weights(file, trust)
    kind = kind_of(weights)
    if kind != "a ControlNet":
        raise InputError(f"{file}: is {kind}; give a ControlNet for Stable Diffusion 1 or 2")
    if "controlnet_cond_embedding.conv_in.weight" in weights:  # a folder's weights on their own
        try:
            weights = {original: weights[name] for name, original in control_names(weights).items()}
        except KeyError as error:
            raise InputError(f"{file}: {error} is none of a ControlNet's weights; give another") from error
    prefix = CONTROL if any(name.startswith(CONTROL) for name in weights) else ""
    try:
        told = control_settings(weights, prefix)
        certain = told | UNTOLD.get(file.stem, {}) | json.loads(metadata.get(SETTINGS, "{}"))
        with torch.device("meta"):  # shapes alone
            built: Any = ControlNetModel.from_config(published_heads(told) | certain)  # pyright: ignore[reportArgumentType]
        weights = from_original(weights, control_names(built.state_dict()), prefix)
    except (KeyError, StopIteration) as error:
        raise InputError(f"{file}: {error} is not in it, so its ControlNet is not whole; give another") from error
    except (ValueError, TypeError, IndexError) as error:  # nothing of a part is there, or settings are garbled
        raise InputError(f"{file}: its ControlNet is not whole ({error}); give another") from error
    settings = plain_settings(built.config)
    return SavedBranch("ControlNetModel", settings, weights, frozenset(certain))


def read_branch(place: Path, like: ModelMixin, trust: str | None = "init.trust=true") -> dict[str, Tensor]:
    """The weights, in float32, of the branch that is saved in `place` for a model with a branch like `like`.

    `place` and `trust` as `read_saved` takes them. Raises InputError if there is none, or if its kind or its settings
    are not those of `like`; the line names them.
    """
    saved = read_saved(place, trust)
    wanted_kind = type(like).__name__
    if saved.kind != wanted_kind:
        raise InputError(
            f"{place}: holds a {saved.kind}, and this model's branch is a {wanted_kind}; give the other one"
        )
    settings: Any = like.config
    wanted = plain_settings(settings)
    there = saved.settings
    different = [k for k in sorted(wanted.keys() & saved.told) if there[k] != wanted[k] and k not in PASSING]
    if different:
        list_of = "; ".join(f"{key} {there[key]} there, {wanted[key]} here" for key in different)
        raise InputError(f"{place}: that branch does not fit this base and model: {list_of}")
    shapes = {name: tensor.shape for name, tensor in like.state_dict().items()}
    for name in shapes:
        if name not in saved.weights:
            raise InputError(f"{place}: cannot be loaded ({name} is not in it); save the branch there again")
    wrong = next((n for n, t in saved.weights.items() if n in shapes and shapes[n] != t.shape), None)
    if wrong:
        raise InputError(
            f"{place}: cannot be loaded ({wrong} is {list(saved.weights[wrong].shape)}, {list(shapes[wrong])} here);"
            " save the branch there again"
        )
    return {name: tensor.float() for name, tensor in saved.weights.items()}


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write to, that takes the place of `folder` once it is whole, and goes away if it never is.

    Raises InputError if nothing can be written there.
    """
    # Names that nobody gives to folders of theirs.
    part, old = (folder.with_name(f".{folder.name}.cnx-{end}") for end in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); give another place, or make room"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings as JSON holds them, without diffusers' own remarks."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items() if k[0] != "_"}


def settings_text(settings: Mapping[str, Any]) -> str:
    """What stands under SETTINGS in a file's metadata."""
    return json.dumps(plain_settings(settings), sort_keys=True)
