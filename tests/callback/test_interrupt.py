import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from cnx.callback import Interrupt, was_interrupted

pytestmark = pytest.mark.skipif(os.name == "nt", reason="os.kill ends the process on Windows")


class Square(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight**2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Kill(Callback):
    """Sends the process a signal at the start of given micro-batches, and counts the micro-batches that end."""

    def __init__(self, signum: signal.Signals, *at: int) -> None:
        self.signum, self.at = signum, at
        self.ended = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.at:
            os.kill(os.getpid(), self.signum)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.ended += 1


def fit(folder: Path, *callbacks: Callback) -> Trainer:
    trainer = Trainer(
        max_steps=10,
        accumulate_grad_batches=3,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Square(), DataLoader(torch.zeros(30, 1)))  # pyright: ignore[reportArgumentType]
    return trainer


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [3, 4, 5])
def test_a_signal_stops_at_the_end_of_the_optimizer_step_under_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], signum: signal.Signals, at: int
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt, kill = Interrupt(), Kill(signum, at)
    trainer = fit(tmp_path, kill, interrupt)
    assert interrupt.interrupted
    assert (trainer.global_step, kill.ended) == (2, 6)
    assert capsys.readouterr().out.count(f"{signum.name}: stopping after this step") == 1
    assert before == {number: signal.getsignal(number) for number in before}


def test_a_signal_during_the_last_step_s_probe_leaves_the_run_finished(tmp_path: Path) -> None:
    class Late(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == trainer.max_steps:
                os.kill(os.getpid(), signal.SIGTERM)

    interrupt = Interrupt()
    trainer = fit(tmp_path, interrupt, Late())
    assert trainer.global_step == 10 and not was_interrupted(trainer)


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupt, kill = Interrupt(), Kill(signal.SIGINT, 3, 4)
    with pytest.raises((KeyboardInterrupt, SystemExit)):  # lightning turns the one into the other
        fit(tmp_path, kill, interrupt)
    assert kill.ended == 4
    assert signal.getsignal(signal.SIGINT) == before


def test_a_run_left_alone_is_left_alone(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt = Interrupt()
    assert fit(tmp_path, interrupt).global_step == 10
    assert not interrupt.interrupted
    assert before == {number: signal.getsignal(number) for number in before}


def test_handlers_come_back_after_an_error(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            raise RuntimeError("no")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(RuntimeError, match="no"):
        fit(tmp_path, Interrupt(), Fails())
    assert before == {number: signal.getsignal(number) for number in before}
