import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from cnx.callback import RunProgress


class Constant(LightningModule):
    """Its loss is 0.125 at every micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return 0 * self.weight + 0.125

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder: Path, console: Console, **settings: Any) -> Trainer:
    bar = RunProgress(console)
    trainer = Trainer(
        **settings,
        callbacks=[bar],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    assert trainer.progress_bar_callback is bar, "lightning's own bar would be drawn too"
    trainer.fit(Constant(), DataLoader(torch.zeros(40, 1), batch_size=4))  # pyright: ignore[reportArgumentType]
    return trainer


def test_a_terminal_gets_one_bar_over_all_epochs(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    run(tmp_path, console, max_epochs=3, accumulate_grad_batches=2)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    last = text[text.rindex("training") :]
    assert "15/15" in last and "loss 0.1250" in last and "images/s" in last
    assert "0/15" in text and "\x1b[?25h" in text, "the bar starts at 0 and gives the cursor back"


def test_elsewhere_a_plain_line_comes_at_every_tenth(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=40)
    run(tmp_path, console, max_steps=40, max_epochs=-1)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "\x1b" not in text and "\r" not in text
    lines = text.splitlines()
    assert [line.split(" · ")[0] for line in lines] == [f"step {step}/40" for step in range(4, 41, 4)]
    assert all("loss 0.1250" in line and "images/s" in line and "left" in line for line in lines)


def test_micro_batches_do_not_count_as_steps(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    run(tmp_path, console, max_steps=10, accumulate_grad_batches=4)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(text.splitlines()) == 10


def test_a_disabled_bar_is_silent(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    bar = RunProgress(console)
    bar.disable()
    trainer = Trainer(
        max_steps=2,
        callbacks=[bar],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Constant(), DataLoader(torch.zeros(4, 1)))  # pyright: ignore[reportArgumentType]
    assert console.file.getvalue() == ""  # pyright: ignore[reportAttributeAccessIssue]
