"""The folder that a run leaves behind: runs/<experiment>/<time>[-overrides]/ (DESIGN: contracts)."""

import re
import subprocess
from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cnx.errors import InputError


def new_run_folder(cfg: DictConfig) -> Path:
    """Make the run's folder, with the resolved configuration in config.yaml.

    Called when the input has proved good, so that a mistake leaves nothing behind.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    name = "-".join([stamp, *_overrides()])
    for attempt in range(100):  # runs of a sweep may begin in the same second
        folder = Path(cfg.runs) / cfg.name / (name if attempt == 0 else f"{name}-{attempt}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
    else:
        raise InputError(f"{folder}: exists, and so do 99 like it; set runs=<another folder>")
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    return folder


def _overrides() -> list[str]:
    """What was given on the command line, fit for a file name."""
    if not HydraConfig.initialized():
        return []
    given = [o for o in HydraConfig.get().overrides.task if not re.match(r"(experiment|runs|name|logger\b.*)=", o)]
    names = [re.sub(r"[^\w.=-]+", "_", override.removeprefix("+")) for override in given]
    return ["-".join(names)[:100]] if names else []


def read_config(folder: Path) -> DictConfig:
    """The configuration of the run in `folder`. Raises InputError if the folder is no run."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise InputError(f"{folder}: no config.yaml there, so it is no run folder; runs are in runs/<experiment>/<time>")
    cfg = OmegaConf.load(file)
    assert isinstance(cfg, DictConfig)
    return cfg


def git_commit() -> str | None:
    """The commit of the working tree that this package is in, with "-dirty" after local changes; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match", "", "--exclude", "*"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return found.stdout.strip() or None if found.returncode == 0 else None
