"""Weights & Biases, without asking anything of who has no account."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import rich
import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb.errors import Error


def wandb_logger(folder: Path, name: str, project: str, group: str | None, config: dict[str, Any]) -> WandbLogger:
    """A logger that is online where a wandb login is found, and otherwise offline with a line on how to sync.

    `WANDB_MODE` is honoured where it is set. Scalars are plotted against optimizer steps, and can be against
    `samples_seen` and `micro_batch`, which every row carries.
    """
    mode = os.environ.get("WANDB_MODE", "")
    offline = mode != "disabled" and (mode == "offline" or not _logged_in())
    begin = partial(wandb.init, project=project, name=name, group=group, dir=folder, config=config)
    run = None if offline else _begin_online(begin)
    if run is None:
        run = begin(settings=wandb.Settings(silent=True, mode="offline"))
    run.define_metric("*", step_metric="optimizer_step")
    if run.offline:
        rich.get_console().print(f"wandb: offline; to upload later: wandb sync {Path(run.dir).parent}", soft_wrap=True)
    elif run.url:
        rich.get_console().print(f"wandb: {run.url}", soft_wrap=True)
    return WandbLogger(experiment=run)


def _begin_online(begin: Callable[..., wandb.Run]) -> wandb.Run | None:
    try:
        return begin(settings=wandb.Settings(silent=True, init_timeout=30))
    except Error:  # logged in, but without a network
        return None


def _logged_in() -> bool:
    try:
        return wandb.login(prompt=False, verify=False)
    except Exception:  # a broken login must not cost a run
        return False
