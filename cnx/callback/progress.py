"""The progress of a run, as a person watches it."""

import time
from collections import deque
from statistics import median
from typing import Any

import rich
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from cnx.callback.length import steps_in_all

LOSS_DECAY = 0.98  # of the loss's moving average, per micro-batch: the last 50 or so
REFRESH_SECONDS = 0.25  # reading the loss waits for the accelerator: not at every step


class RunProgress(ProgressBar):
    """One bar over the whole run, all epochs: optimizer step, smoothed loss, images/s, time elapsed, time left.

    Where the console is no terminal, a plain line at every tenth of the run instead. Lines printed through the same
    console (rich.get_console()) appear above the bar. Images/s is the median of the last 50 micro-batches, so probes
    and checkpoints do not disturb it; time left counts them, at the share they have had so far.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or rich.get_console()
        self._enabled = True
        self._progress: Progress | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        self._console.print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = steps_in_all(trainer) or None
        self._first_step = self._step = trainer.global_step
        self._start = self._last_batch = self._last_refresh = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=50)
        self._images = 0
        self._loss: Tensor | float = 0.0
        self._weight = 0.0
        self._tenths = self._tenths_done()
        if self._enabled and self._console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", style="cyan"),
                console=self._console,
                refresh_per_second=4,
                expand=True,
            )
            self._task = self._progress.add_task(
                "training", total=self._total, completed=self._step, status=self._steps(), left=""
            )
            self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._seconds.append(now - self._last_batch)
        self._last_batch = now
        self._images = len(batch[0]) * trainer.world_size
        self._step, self._total = trainer.global_step, steps_in_all(trainer) or None  # a phase may have set an end
        if isinstance(outputs, dict) and "loss" in outputs:
            # Lightning has divided it by the number of micro-batches in a step.
            loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
            self._loss = LOSS_DECAY * self._loss + (1 - LOSS_DECAY) * loss
            self._weight = LOSS_DECAY * self._weight + (1 - LOSS_DECAY)
        if not self._enabled:
            return
        if self._progress is not None:
            if now - self._last_refresh >= REFRESH_SECONDS or self._step == self._total:
                self._last_refresh = now
                left = self._left(now)
                self._progress.update(
                    self._task,
                    total=self._total,
                    completed=self._step,
                    status=self._status(),
                    left="" if left is None else f"{_clock(left)} left",
                )
        elif self._tenths_done() > self._tenths:
            self._tenths = self._tenths_done()
            left = self._left(now)
            line = f"step {self._status()} · {_clock(now - self._start)} elapsed"
            line += "" if left is None else f" · {_clock(left)} left"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=self._step, status=self._status(), left="")
            self._progress.stop()
            self._progress = None

    def _tenths_done(self) -> int:
        # Of a run without an end, every thousand steps stand for a tenth.
        return 10 * self._step // self._total if self._total else self._step // 1000

    def _steps(self) -> str:
        return f"{self._step:,}/{self._total:,}" if self._total else f"{self._step:,}"

    def _status(self) -> str:
        status = self._steps()
        if self._weight:
            status += f" · loss {float(self._loss) / self._weight:.4f}"
        if self._seconds:
            status += f" · {self._images / max(median(self._seconds), 1e-9):.1f} images/s"
        return status

    def _left(self, now: float) -> float | None:
        done = self._step - self._first_step
        if self._total is None or done <= 0:
            return None
        return (now - self._start) / done * max(self._total - self._step, 0)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
