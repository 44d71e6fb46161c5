"""Measure a training step: its speed, its memory, and where its time goes.

    python benchmarks/step.py [steps=30] [any override of run.py ...]

Values separated by commas are tried in turn: `data.batch_size=4,8 trainer.precision=32-true,bf16-mixed`.
Every combination runs in a process of its own, on freshly drawn pictures in a temporary folder. Whether a step waits
for data is its part "data": data.num_workers=0,1 data.cache=off,latents,all (off: encoding is in it).
"""

import itertools
import os
import platform
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from lightning import Callback, LightningModule, Trainer, seed_everything  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import run  # noqa: E402  (mounts experiments/ and the resolvers of conf/)
from cnx.errors import InputError  # noqa: E402
from cnx.task.fitting import economise, keep_freed_memory  # noqa: E402
from cnx.task.train import build, make_training, peak_memory_bytes  # noqa: E402

WARM_UP = 3  # steps

DATA = "data"
BRANCH_FORWARD, BASE_FORWARD = "branch forward", "base forward"
BASE_BACKWARD, BRANCH_BACKWARD = "base backward", "branch backward"
OPTIMIZER, OTHER = "optimizer", "other"
PARTS = (DATA, BRANCH_FORWARD, BASE_FORWARD, BASE_BACKWARD, BRANCH_BACKWARD, OPTIMIZER, OTHER)


@dataclass
class Measured:
    """One combination: what ran, median seconds of a step and of its parts, FLOP of a step, bytes at the peak."""

    made_of: str
    batch: str
    precision: str
    images: int
    seconds: float
    parts: dict[str, float]
    flop: int
    peak_memory: int | None


class Stopwatch(Callback):
    """Times whole optimizer steps first, then their parts, since looking inside makes an accelerator wait."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.whole: list[float] = []
        self.inside: list[dict[str, float]] = []
        self.parts: dict[str, float] = defaultdict(float)
        self.counter = FlopCounterMode(display=False)
        self.looks_inside = self.in_base = False
        self.last = self.began = 0.0
        self.done = 0  # optimizer steps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module.model
        model.branch.register_forward_pre_hook(lambda *_: self.mark(OTHER))
        model.branch.register_forward_hook(self.watch_links)
        model.base.unet.register_forward_pre_hook(lambda *_: self.mark(OTHER))
        model.base.unet.register_forward_hook(lambda *_: self.mark(BASE_FORWARD))

    def watch_links(self, branch: Any, inputs: Any, links: tuple[list[Tensor], Tensor]) -> None:
        self.mark(BRANCH_FORWARD)
        self.in_base = True
        for link in (*links[0], links[1]):
            link.register_hook(self.leave_base)

    def leave_base(self, gradient: Tensor) -> None:
        # Autograd goes through the later part of the graph first, so all of the base lies before the first link.
        if self.in_base:
            self.in_base = False
            self.mark(BASE_BACKWARD)

    def mark(self, part: str) -> None:
        """Count the time since the last mark as `part`."""
        if self.looks_inside:
            now = synchronized()
            self.parts[part] += now - self.last
            self.last = now

    def on_train_batch_start(self, *_: Any) -> None:
        self.mark(DATA)

    def on_before_backward(self, *_: Any) -> None:
        self.mark(OTHER)

    def on_after_backward(self, *_: Any) -> None:
        self.mark(BRANCH_BACKWARD)

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.mark(OTHER)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        stepped, self.done = trainer.global_step > self.done, trainer.global_step
        self.mark(OPTIMIZER if stepped else OTHER)
        if not stepped:
            return
        now = synchronized()
        if self.looks_inside:
            self.inside.append(dict(self.parts))
        elif self.done > WARM_UP:
            self.whole.append(now - self.began)
        if self.done == WARM_UP - 1:
            self.counter.__enter__()
        elif self.done == WARM_UP:
            self.counter.__exit__(None, None, None)
        self.looks_inside = self.done >= WARM_UP + self.steps
        self.parts.clear()
        self.began = self.last = synchronized()


def synchronized() -> float:
    """The time, when the accelerator has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def read(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("config", ["+steps=30", *overrides], return_hydra_config=True)


def measure(overrides: list[str], shown: tuple[str, ...] = ()) -> Measured:
    """Train as `overrides` say, for a few steps; those of them that are `shown` go into its name."""
    run.quieten()
    keep_freed_memory()
    warnings.filterwarnings("ignore")
    cfg = read(overrides)
    seed_everything(cfg.seed, verbose=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cfg.data.cache_folder, cfg.data.heldout = f"{folder}/cache", 0
        if "scenes" in cfg.data:
            cfg.data.root = f"{folder}/pictures"
            # Three steps of four lie within an epoch, so medians do not see its beginning.
            cfg.data.limit = 4 * cfg.data.batch_size * cfg.trainer.accumulate_grad_batches
        data = instantiate(cfg.data)
        base, model = build(cfg)
        economise(cfg, model)
        data.prepare(base)
        stopwatch = Stopwatch(cfg.steps)
        trainer: Trainer = instantiate(
            cfg.trainer,
            max_steps=WARM_UP + 2 * cfg.steps,
            callbacks=[stopwatch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # of encoding the pictures
        trainer.fit(make_training(cfg, model, data), datamodule=data)
    batch_size, accumulated = cfg.data.batch_size, cfg.trainer.accumulate_grad_batches
    return Measured(
        made_of="\n".join([f"{cfg.hydra.runtime.choices.base}, {cfg.hydra.runtime.choices.model}", *shown]),
        batch=f"{batch_size}" if accumulated == 1 else f"{batch_size} × {accumulated}",
        precision=trainer.precision,
        images=batch_size * accumulated,
        seconds=median(stopwatch.whole),
        parts={part: median(step.get(part, 0.0) for step in stopwatch.inside) for part in PARTS},
        flop=stopwatch.counter.get_total_flops(),
        peak_memory=peak_memory_bytes(),
    )


def matmul_peak(dtype: torch.dtype) -> float:
    """The most FLOP/s that multiplying two square matrices reaches here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    while len(seconds) < 3 or (len(seconds) < 20 and sum(seconds) < 2):
        began = synchronized()
        a @ b
        seconds.append(synchronized() - began)
    return 2 * side**3 / min(seconds)


def matmul_peaks() -> tuple[str, float, float]:
    """The machine in words, and its measured FLOP/s in float32 and bfloat16."""
    cpu = f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return name, matmul_peak(torch.float32), matmul_peak(torch.bfloat16)


def combinations(arguments: list[str]) -> list[list[str]]:
    """Every combination of the values that commas separate."""
    parsed = OverridesParser.create().parse_overrides(arguments)
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [str(o.input_line)]
        for o in parsed
    ]
    return [list(chosen) for chosen in itertools.product(*choices)]


def in_fresh_process(function: Any, *arguments: Any) -> Any:
    """Call `function` where nothing has run before: a process's peak of memory never goes down."""
    with ProcessPoolExecutor(max_workers=1) as process:
        return process.submit(function, *arguments).result()


def speed_table(results: list[Measured]) -> Table:
    rates = ("steps/s", "images/s", "ms a step", "GFLOP a step", "GFLOP/s", "peak memory")
    table = Table("base, model", "batch", "precision", *rates, title="Training step, medians")
    for m in results:
        memory = "" if m.peak_memory is None else f"{m.peak_memory / 2**20:,.0f} MiB"
        numbers = (1 / m.seconds, m.images / m.seconds, 1e3 * m.seconds, m.flop / 1e9, m.flop / 1e9 / m.seconds)
        table.add_row(m.made_of, m.batch, m.precision, *(f"{number:,.2f}" for number in numbers), memory)
    return table


def parts_table(results: list[Measured]) -> Table:
    table = Table("base, model", "batch", "precision", *PARTS, title="Its parts: ms, share")
    for m in results:
        total = sum(m.parts.values())
        shares = [f"{1e3 * seconds:.1f}\n{seconds / total:.1%}" for seconds in m.parts.values()]
        table.add_row(m.made_of, m.batch, m.precision, *shares)
    return table


def main(arguments: list[str]) -> None:
    results = []
    try:
        wanted = combinations(arguments)
        for overrides in wanted:
            read(overrides)  # a mistake shows before anything has run
        machine, float32, bfloat16 = in_fresh_process(matmul_peaks)
        for overrides in wanted:
            shown = tuple(each for each in overrides if not all(each in other for other in wanted))
            own = ("base=", "model=", "data.batch_size=", "trainer.precision=")  # columns of their own
            results.append(in_fresh_process(measure, overrides, tuple(s for s in shown if not s.startswith(own))))
    except (InputError, HydraException) as error:
        sys.exit(f"benchmarks/step.py: {error}")
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(
        f"{machine} · torch {torch.__version__} · matmul peak: "
        f"{float32 / 1e9:,.0f} GFLOP/s in float32, {bfloat16 / 1e9:,.0f} in bfloat16",
        highlight=False,
    )
    console.print(speed_table(results), parts_table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
