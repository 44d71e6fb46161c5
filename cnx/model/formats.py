"""What a control branch can be written as."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from cnx.base import apart, check_same, write_weights
from cnx.base.original import UNET, encoder_settings, to_original
from cnx.errors import InputError
from cnx.model.light import LightBranch
from cnx.model.original import CONTROL, control_names, control_settings, published_heads
from cnx.model.saved import SETTINGS, SavedBranch, plain_settings, read_saved, replaced, settings_text

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (ControlNetModel, LightBranch)}


def read_whole(place: Path, trust: str | None) -> SavedBranch:
    """The branch in `place`, as `read_saved` gives it, with all weights that it has by its settings and no others.

    Raises InputError as `read_saved` does, for a model that is no branch, and for a weight that is missing, of another
    shape, or too many.
    """
    branch = read_saved(place, trust)
    if branch.kind not in KINDS:
        raise InputError(f"{place}: holds a {branch.kind}; give a ControlNet for Stable Diffusion 1 or 2")
    try:
        with torch.device("meta"):  # shapes alone
            wanted = KINDS[branch.kind].from_config(branch.settings).state_dict()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{place}: has settings of which nothing can be built ({error}); give another") from error
    for name in sorted(wanted.keys() | branch.weights.keys()):
        there, here = (list(w[name].shape) if name in w else None for w in (branch.weights, wanted))
        if there != here:
            found = "is not in it" if there is None else f"is {there} in it"
            fits = "there is none" if here is None else f"{here} are wanted"
            raise InputError(f"{place}: {name} {found}, and by its settings {fits}; give another, or save it again")
    return branch


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
        model.load_state_dict(apart(branch.weights), assign=True)
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
        write_weights({**self.beside(told, base), **weights}, to, metadata)

    def beside(self, told: Mapping[str, Any], base: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """What else is in the file. `told` are the branch's settings, as `control_settings` gives them."""
        return {}


class OriginalWithBase(OriginalFile):
    """One file with the whole base and the branch, as the original's tool_add_control writes and its training loads."""

    def beside(self, told: Mapping[str, Any], base: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The base. Raises InputError if it is built otherwise than the branch."""
        whole = base()
        its = encoder_settings(whole, UNET)
        different = "; ".join(f"{key} {told[key]}, the base's {its[key]}" for key in its if told[key] != its[key])
        if different:
            raise InputError(
                f"format=original_with_base: that ControlNet is not for this base: {different}; give its own by base="
                " and base.path="
            )
        return whole
