"""Write a ControlNet in another format, attach a fresh one to a base, or carry one to another base."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig
from torch import Tensor

from cnx.base import Base, original_weights
from cnx.errors import InputError
from cnx.model import Format, SavedBranch, find_branch, plain_settings, read_whole
from cnx.task.run_folder import given_overrides, read_config
from cnx.task.train import base_settings, build, own_base_settings, say

Weights = Callable[[], Mapping[str, Tensor]]


def run(cfg: DictConfig) -> None:
    """Write the ControlNet `cfg["from"]`, or a fresh one for `cfg.base`, to `cfg.to` as `cfg.format` has it.

    Weights keep their dtype and their bytes. With `cfg.transfer_from`, the difference of `cfg.base` from that base is
    added first (`carried`). Raises InputError for what is no ControlNet, for a name that is taken or does not suit the
    format, and for a base of other widths.
    """
    to, form = Path(str(cfg.to)), instantiate(cfg.format)
    assert isinstance(form, Format)
    form.check(to)
    if to.exists():
        raise InputError(f"to={to}: is there already; give another name, or remove it first")
    branch, base = _fresh(cfg) if cfg["from"] is None else _given(cfg)
    if cfg.transfer_from is not None:
        branch = carried(branch, old=_unet(cfg, str(cfg.transfer_from)), new=_unet(cfg, cfg.base.path))
    form.write(branch, to, base)
    dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in branch.weights.values()}))
    count = sum(tensor.numel() for tensor in branch.weights.values())
    say(f"Wrote {to}: a {branch.kind} of {count:,} weights in {dtypes}, loaded back and found the same.")


def _fresh(cfg: DictConfig) -> tuple[SavedBranch, Weights]:
    """A new branch and its base, which the init may have drawn anew."""
    if cfg.transfer_from is not None:
        raise InputError("transfer_from: carries a trained ControlNet; give it as from=<ControlNet>")
    seed_everything(cfg.seed, verbose=False)
    base, model = build(cfg)
    model.link("all")  # unconnected ones too, at zero
    settings = plain_settings(model.branch.config)
    branch = SavedBranch(type(model.branch).__name__, settings, model.branch.state_dict(), frozenset(settings))
    return branch, base.original_weights if base.path is None else partial(original_weights, **base_settings(cfg))


def _given(cfg: DictConfig) -> tuple[SavedBranch, Weights]:
    """A saved branch and its base: a run's own, as it was trained, unless another is asked for."""
    place = find_branch(str(cfg["from"]), "from")
    branch = read_whole(place, trust=None if cfg.trust else "trust=true")
    settings, run = base_settings(cfg), place.parent
    chosen = any(re.match(r"\+*base\b", override) for override in given_overrides())
    if place.name == "controlnet" and (run / "config.yaml").is_file() and not chosen:
        settings = own_base_settings(read_config(run), run)
    return branch, partial(original_weights, **settings)


def _unet(cfg: DictConfig, path: str) -> Mapping[str, Tensor]:
    settings: dict[str, Any] = {**base_settings(cfg), "path": path}
    try:
        return Base.load(**settings, dtype=None).unet.state_dict()
    except InputError as error:
        if path == cfg.base.path:
            raise
        raise InputError(str(error).replace("base.path=", "transfer_from=", 1)) from error


def carried(branch: SavedBranch, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> SavedBranch:
    """The branch with the difference of two bases' UNets added to each weight that it has of theirs.

    θ_c + θ_new − θ_old, in float32 and then in the branch's own dtype (lllyasviel/ControlNet, discussion 12). Its hint
    encoder and zero convolutions are not the bases' and stay. Raises InputError where the shapes are not the same.
    """
    weights = dict(branch.weights)
    for name in weights.keys() & old.keys() & new.keys():
        shapes = {tuple(tensors[name].shape) for tensors in (weights, old, new)}
        if len(shapes) > 1:
            raise InputError(
                f"transfer_from: {name} is {' and '.join(str(list(shape)) for shape in sorted(shapes))} in ControlNet"
                " and bases; give bases of the ControlNet's own widths"
            )
        total = weights[name].to(torch.float32) + new[name].to(torch.float32) - old[name].to(torch.float32)
        weights[name] = total.to(weights[name].dtype)
    return replace(branch, weights=weights)
