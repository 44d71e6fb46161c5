"""Weights & Biases, without asking anything of who has no account."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rich
import wandb
from jaxtyping import UInt8
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from wandb.errors import Error

from cnx.callback.table import CLOCKS
from cnx.condition import apart

# The sections of a run's page: a metric's name begins with its section's.
SECTIONS = ("control", "train", "samples")

# Where wandb keeps the pictures of tables until they are uploaded; whoever has set it has a reason.
DATA_DIR = "WANDB_DATA_DIR"
CHOSEN_DATA_DIR = os.environ.get(DATA_DIR)


class Wandb(WandbLogger):
    """Logs at the optimizer step, so that wandb's own step is no fourth clock and a resumed run goes on where it was.

    What is logged at one optimizer step is one row of wandb's history, the three clocks in it, so that any of them can
    be the axis; wandb passes over a row before the last one, which a run resumed from an older checkpoint makes again.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_samples(
        self,
        clocks: Mapping[str, int],
        grid: Image.Image,
        caption: str,
        index: Sequence[int],
        prompts: Sequence[str],
        control: UInt8[np.ndarray, "n H W m"],
        samples: UInt8[np.ndarray, "n H W 3"],
        fidelity: Sequence[float],
    ) -> None:
        """Log a probe's grid under its caption, and a table of its items: their fidelity is the raw one."""
        step = clocks["optimizer_step"]
        table = wandb.Table(columns=["step", "item", "prompt", "map", "sample", "fidelity"])
        for i, prompt in enumerate(prompts):
            maps = wandb.Image(np.hstack(apart(control[i])))
            table.add_data(step, index[i], prompt, maps, wandb.Image(samples[i]), fidelity[i])
        image = wandb.Image(grid, caption=caption)
        self.log_metrics({"samples/grid": image, "samples/table": table, **clocks}, step=step)

    @rank_zero_only
    def announce(self, step: int, text: str) -> None:
        """Tell the run's owner that it converged at `step`, the way they asked wandb to tell them."""
        self.experiment.summary["convergence_step"] = step
        self.experiment.alert(title=f"Converged at step {step:,}", text=text)

    @rank_zero_only
    def use_dataset(self, name: str, content: str, roots: Sequence[str], **facts: Any) -> None:
        """Note the data set as the run's input: where it lies and its content's hash, not its files. Online only."""
        if not self._online():
            return
        known = {"content": content, "roots": [*roots], **facts}
        with _whatever_wandb_says("data set"):
            data = wandb.Artifact(f"{name}-{content[:12]}", type="dataset", metadata=known)
            with data.new_file("dataset.json") as file:
                json.dump(known, file, indent=1)
            self.experiment.use_artifact(data)

    @rank_zero_only
    def log_model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Upload a run folder's ControlNet as its output, and the base where it has its own. Online only."""
        if not self._online():
            return
        with _whatever_wandb_says("model"):
            model = wandb.Artifact(f"controlnet-{self.experiment.id}", type="model", metadata=dict(facts))
            for part in ("controlnet", "base"):
                if (folder / part).is_dir():
                    model.add_dir(str(folder / part), name=part)
            self.experiment.log_artifact(model)

    def _online(self) -> bool:
        return not self.experiment.offline and bool(self.experiment.url)


def wandb_logger(folder: Path, name: str, project: str, group: str | None, config: dict[str, Any]) -> Wandb:
    """A logger that is online where a wandb login is found, and otherwise offline with a line on how to sync.

    `WANDB_MODE` is honoured where it is set. Scalars are plotted against optimizer steps, and can be against
    `samples_seen` and `micro_batch`, which every row carries. A run that goes on in its folder goes on in wandb too,
    by the id in `wandb/run.json`, and in its `group`; offline, its second sitting is a second record of that run.
    """
    if rank_zero_only.rank != 0:  # pyright: ignore[reportFunctionMemberAccess]
        return Wandb()  # begins no run: only the process of rank zero logs
    noted = folder / "wandb" / "run.json"
    earlier = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
    group = group or earlier.get("group")
    # In the run's folder and not in the user's home: an offline run is whole where it lies until it is uploaded.
    os.environ[DATA_DIR] = CHOSEN_DATA_DIR or str((folder / "wandb" / "data").absolute())
    mode = os.environ.get("WANDB_MODE", "")
    offline = mode != "disabled" and (mode == "offline" or not logged_in())
    begin = partial(
        wandb.init,
        project=project,
        name=name,
        group=group,
        dir=folder,
        config=flatten(config),
        id=earlier.get("id"),
        resume="allow",
        reinit="finish_previous",  # a run of a sweep that failed has left its own open
    )
    run = None if offline else _begin_online(begin)
    if run is None:
        run = begin(settings=wandb.Settings(silent=True, mode="offline"))
    for clock in CLOCKS:
        run.define_metric(clock, hidden=True)  # axes, and no panels of their own
    for section in SECTIONS:
        run.define_metric(f"{section}/*", step_metric="optimizer_step")
    if run.offline or run.url:
        noted.parent.mkdir(parents=True, exist_ok=True)
        part = noted.with_name("run.json.part")
        part.write_text(json.dumps({"id": run.id, "group": group}) + "\n", encoding="utf-8")
        os.replace(part, noted)
    if run.offline:
        rich.get_console().print(f"wandb: offline; to upload later: wandb sync {folder / 'wandb'}", soft_wrap=True)
    elif run.url:
        rich.get_console().print(f"wandb: {run.url}", soft_wrap=True)
    return Wandb(experiment=run)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration as columns to filter and group by: the option taken of each group, and every value.

    {"choices": {"init": "gaussian_control"}, "init": {"_target_": ..., "std": 0.01}, "seed": 0} becomes
    {"init": "gaussian_control", "init/std": 0.01, "seed": 0}.
    """
    flat: dict[str, Any] = {key: choice for key, choice in (config.get("choices") or {}).items() if choice is not None}

    def add(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                add(f"{prefix}/{key}" if prefix else str(key), value)
        elif not prefix.rpartition("/")[2].startswith("_"):  # Hydra's _target_ and _partial_
            flat.setdefault(prefix, node)

    add("", {key: value for key, value in config.items() if key != "choices"})
    return flat


@contextmanager
def _whatever_wandb_says(of: str) -> Iterator[None]:
    """Let a run go on, and end, whose artifact wandb does not take."""
    try:
        yield
    except Exception as error:
        line = f"wandb: the {of} is no artifact of this run ({' '.join(str(error).split())[:200]})"
        rich.get_console().print(line, highlight=False, markup=False, soft_wrap=True)


def _begin_online(begin: Callable[..., wandb.Run]) -> wandb.Run | None:
    try:
        return begin(settings=wandb.Settings(silent=True, init_timeout=30))
    except Error:  # logged in, but without a network
        return None


def logged_in() -> bool:
    """Whether this machine has a wandb login; nothing is asked, of a person or of the network."""
    try:
        return wandb.login(prompt=False, verify=False)
    except Exception:  # a broken login must not cost a run
        return False
