"""Real runs, made small: what `python run.py` does, in this process."""

import csv
import os
import signal
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning import Callback
from omegaconf import DictConfig, open_dict

import run
from cnx.callback.table import CLOCKS

REPOSITORY = Path(run.__file__).parent
SMALL = [
    "logger=none",
    "data.limit=40",
    "data.heldout=0.2",
    "data.batch_size=4",
    "trainer.precision=32-true",
    "trainer.log_every_n_steps=1",
    "callback.probe.items=2",
    "callback.probe.every=2",
    "callback.probe.gain_every=1",
    "callback.probe.budget=null",  # the same probes, whatever the time
    "sampler.steps=2",
]


def composed(*overrides: str, whole: bool = False) -> DictConfig:
    """The configuration of `python run.py <overrides>`; `whole` with Hydra's own part."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("config", overrides=run.together(overrides), return_hydra_config=whole)


def begun(*overrides: str) -> DictConfig:
    """The same, where Hydra is made to believe that it has begun such a run."""
    cfg = composed(*overrides, whole=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def launch(*overrides: str) -> Path:
    """Do in this process what `python run.py <overrides>` does; returns the newest run folder."""
    run.execute(begun(*overrides))
    return max(Path("runs").glob("*/*"), key=lambda folder: folder.stat().st_mtime_ns)


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def measured(folder: Path) -> list[tuple[str, str, str]]:
    """(optimizer step, metric, value) of every cell; a probe put off by Ctrl-C may stand in another row."""
    return sorted((row["optimizer_step"], name, cell) for row in rows(folder) for name, cell in row.items()
                  if cell and name not in (*CLOCKS, "train/images_per_second"))  # fmt: skip


class PressCtrlC(Callback):
    """A user who has seen enough at some optimizer step: +callback.user={_target_: small_runs.PressCtrlC, step: 9}."""

    def __init__(self, step: int) -> None:
        self.step, self.pressed = step, False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
