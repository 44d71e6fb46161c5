"""Weights & Biases, without asking anything of who has no account."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import rich
import wandb
from lightning.pytorch.loggers import WandbLogger


def wandb_logger(folder: Path, name: str, project: str, group: str | None, config: dict[str, Any]) -> WandbLogger:
    """A logger that is online where a wandb login is found, and otherwise offline with a line on how to sync.

    `WANDB_MODE` is honoured where it is set. Scalars are plotted against optimizer steps, and can be against
    `samples_seen` and `micro_batch`, which every row carries.
    """
    mode = os.environ.get("WANDB_MODE", "")
    offline = mode != "disabled" and (mode == "offline" or not _logged_in())
    begin = partial(wandb.init, project=project, name=name, group=group, dir=folder, config=config)
    if not offline:
        try:
            run = begin(settings=wandb.Settings(silent=True, init_timeout=30))
        except wandb.errors.Error:  # logged in, but without a network
            offline = True
    if offline:
        run = begin(settings=wandb.Settings(silent=True, mode="offline"))
    run.define_metric("*", step_metric="optimizer_step")
    if offline:
        rich.get_console().print(f"wandb: offline; to upload later: wandb sync {Path(run.dir).parent}", soft_wrap=True)
    elif run.url:
        rich.get_console().print(f"wandb: {run.url}", soft_wrap=True)
    return WandbLogger(experiment=run)


def _logged_in() -> bool:
    try:
        return wandb.login(prompt=False, verify=False)
    except Exception:  # a broken login must not cost a run
        return False
