"""The folder that a run leaves behind: runs/<experiment>/<time>[-overrides]/ (DESIGN: contracts)."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from datetime import datetime
from itertools import count
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cnx.errors import InputError
from cnx.report.saved import in_present_terms, read_yaml
from cnx.task.sweep import Job, typed

# Where rank zero tells the processes that Lightning starts for the other devices which folder is the run's.
RUN_FOLDER = "CNX_RUN_FOLDER"


def new_run_folder(cfg: DictConfig) -> Path:
    """Make the run's folder, with the resolved configuration in config.yaml.

    Called when the input has proved good, so that a mistake leaves nothing behind.
    """
    if "LOCAL_RANK" in os.environ and RUN_FOLDER in os.environ:
        return Path(os.environ[RUN_FOLDER])  # the process of rank zero has made it
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    name = "-".join([stamp, *_overrides()])
    folder = Path(cfg.runs) / cfg.name / name
    for again in count(1):  # runs of a sweep may begin in the same second
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            folder = folder.with_name(f"{name}-{again}")
    save_config(cfg, folder)
    os.environ[RUN_FOLDER] = str(folder)
    if job := Job.current():
        job.note_run_folder(folder)
    return folder


def save_config(cfg: DictConfig, folder: Path) -> None:
    """Write the resolved configuration to the run's config.yaml, whole or not at all."""
    part = folder / "config.yaml.part"
    OmegaConf.save(cfg, part, resolve=True)
    os.replace(part, folder / "config.yaml")


def given_overrides() -> list[str]:
    """What the command line gives, as it was typed."""
    return typed(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def note_choices(cfg: DictConfig) -> None:
    """Set `cfg.choices` to the option that was taken of each group, {"base": "tiny", ...}, as Hydra composed it."""
    taken = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    cfg.choices = {group: option for group, option in taken.items() if "hydra" not in group}


def _overrides() -> list[str]:
    """What was given on the command line, shortened to a part of a file name.

    Without `=` and `,`, which Hydra's grammar would not take unquoted in `resume=<run folder>`.
    """
    pairs = [override.lstrip("+~").partition("=") for override in given_overrides()]
    unnamed = ("experiment", "runs", "logger", "launcher")
    named = [f"{key.split('.')[-1]}-{value}" for key, _, value in pairs if key not in unnamed]
    return ["_".join(re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-") for name in named)[:80]] if named else []


def read_config(folder: Path) -> DictConfig:
    """The configuration of the run in `folder`. Raises InputError if the folder is no run."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise InputError(f"{folder}: no config.yaml, so it is no run folder; runs are in runs/<experiment>/<time>")
    saved = read_yaml(file)
    if not isinstance(saved, DictConfig) or not {"choices", "data"} & {*saved}:
        raise InputError(f"{file}: is not the configuration of a run; runs are in runs/<experiment>/<time>")
    return in_present_terms(saved)


def overrides_but(keys: tuple[str, ...]) -> list[str]:
    """What the command line gives, without these keys and all that is below them."""
    given = [(override, override.lstrip("+").partition("=")[0]) for override in given_overrides()]
    return [override for override, key in given if not any(key == own or key.startswith(f"{own}.") for own in keys)]


def override_config(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> DictConfig:
    """The saved configuration of the run in `folder`, with `overrides` of it on top.

    Raises InputError for a key that the run does not have, and for a group or an experiment: a run keeps what it was
    made of.
    """
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key == "experiment" or key in cfg.choices:
            raise InputError(f"{override}: the run {folder} keeps its own {key}; leave it out, or start a new run")
        new = OmegaConf.select(cfg, key, default=cfg) is cfg
        if new and not key.startswith("trainer."):  # lightning.Trainer takes more than our YAML lists
            raise InputError(f"{override}: {folder / 'config.yaml'} has no such key")
        OmegaConf.update(cfg, key, OmegaConf.create(f"value: {value}").value, force_add=True)
    return cfg


def git_commit() -> str | None:
    """The commit of the working tree that this package is in, with "-dirty" after local changes; None outside git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match", "", "--exclude", "*"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return found.stdout.strip() or None if found.returncode == 0 else None
