"""What a control branch can be written as."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from cnx.base import check_same, write_weights
from cnx.base.original import to_original
from cnx.errors import InputError
from cnx.model.light import LightBranch
from cnx.model.original import CONTROL, control_names, control_settings, published_heads
from cnx.model.saved import SETTINGS, SavedBranch, plain_settings, read_saved, replaced, settings_text

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (ControlNetModel, LightBranch)}


class Format(ABC):
    """A way to write a control branch, from which `read_saved` reads the same settings and the same bytes."""

    @abstractmethod
    def check(self, to: Path) -> None:
        """Raises InputError if `to` is no name for this format."""

    @abstractmethod
    def write(self, branch: SavedBranch, to: Path, base: Callable[[], Mapping[str, Tensor]]) -> None:
        """Write `branch` to `to`, compare it with what is read from there, and only then give it that name.

        `base` gives the weights of its base by the original's names. Raises InputError for a branch that this format
        cannot hold, or if what is read differs.
        """


class DiffusersFolder(Format):
    """A folder with config.json and safetensors: what `ControlNetModel.from_pretrained` loads."""

    def check(self, to: Path) -> None:
        if to.suffix in (".safetensors", ".pth", ".ckpt"):
            raise InputError(f"to={to}: format=diffusers writes a folder; give a name without {to.suffix}")

    def write(self, branch: SavedBranch, to: Path, base: Callable[[], Mapping[str, Tensor]]) -> None:
        with torch.device("meta"):  # shapes alone
            model = KINDS[branch.kind].from_config(branch.settings)
        model.load_state_dict(branch.weights, assign=True)
        with replaced(to) as part:
            model.save_pretrained(part, safe_serialization=True)
            check_same(branch.weights, read_saved(part, trust="").weights, to)


class OriginalFile(Format):
    """One file with the original's names, `control_model.*`, as cldm, ComfyUI and the WebUI read it.

    `suffixes` are those that its name may have: a pickle, as the released .pth files are, or .safetensors.
    """

    def __init__(self, suffixes: Sequence[str]) -> None:
        self.suffixes = tuple(suffixes)

    def check(self, to: Path) -> None:
        if to.suffix not in self.suffixes:
            raise InputError(f"to={to}: this format is one file; give a name that ends in {' or '.join(self.suffixes)}")

    def write(self, branch: SavedBranch, to: Path, base: Callable[[], Mapping[str, Tensor]]) -> None:
        if branch.kind != "ControlNetModel":
            raise InputError(f"to={to}: the original has no names for a {branch.kind}; give format=diffusers")
        weights = to_original(branch.weights, control_names(branch.weights), CONTROL)
        told = control_settings(weights, CONTROL)
        # The published ones' settings are known by their weights; others' are written beside them.
        with torch.device("meta"):
            published: Any = ControlNetModel.from_config(published_heads(told) | told)  # pyright: ignore[reportArgumentType]
        known = plain_settings(published.config) == plain_settings(branch.settings)
        metadata = {} if known else {SETTINGS: settings_text(branch.settings)}
        write_weights({**self.beside(base), **weights}, to, metadata)

    def beside(self, base: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """What else is in the file."""
        return {}


class OriginalWithBase(OriginalFile):
    """One file with the whole base and the branch, as the original's tool_add_control writes and its training loads."""

    def beside(self, base: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        return base()
