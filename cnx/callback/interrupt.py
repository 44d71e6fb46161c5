"""Ctrl-C that loses nothing."""

import contextlib
import signal
import threading
from types import FrameType
from typing import Any

import rich
from lightning.pytorch import Callback, LightningModule, Trainer


class Interrupt(Callback):
    """Ends a run cleanly on SIGINT (Ctrl-C) or SIGTERM: at the end of the optimizer step under way, not inside it.

    With gradient accumulation the micro-batches of that step are finished first, so a checkpoint written afterwards
    holds no half-accumulated gradient and a resumed run equals one that was never stopped. A second SIGINT raises
    KeyboardInterrupt at once. With several processes one signal to any of them stops all.

    Attributes:
        interrupted: whether a stop was asked for.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: dict[signal.Signals, Any] = {}
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not sooner: before the first step there is nothing to save, and lightning has put its own SIGTERM handler.
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets only the main thread set handlers
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._on_signal)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # a micro-batch inside an optimizer step
        if trainer.global_step == trainer.max_steps:
            self.interrupted = False  # the run is through: let it end as it does
            return
        if trainer.strategy.reduce_boolean_decision(self.interrupted, all=False):
            self.interrupted = True
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A signal that came after the last step's end: a run that is through is, and the others have not heard of it.
        asked = self.interrupted and trainer.global_step != trainer.max_steps
        self.interrupted = trainer.strategy.reduce_boolean_decision(asked, all=False)
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.interrupted and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.interrupted:
            return
        self.interrupted = True
        # The signal may have arrived in the middle of a write to the same stream: then the line is not worth an error.
        with contextlib.suppress(RuntimeError):
            rich.get_console().print(f"{signal.Signals(signum).name}: stopping after this step (Ctrl-C again: at once)")

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            # Lightning ignores SIGINT while it shuts down after a KeyboardInterrupt: that is not ours to undo.
            if signal.getsignal(signum) == self._on_signal:
                signal.signal(signum, handler)
        self._previous.clear()


def was_interrupted(trainer: Trainer) -> bool:
    """Whether the run was asked to stop, to go on later; a run that `EarlyVerdict` ended is finished."""
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return any(callback.interrupted for callback in callbacks if isinstance(callback, Interrupt))
