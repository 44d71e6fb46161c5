import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from cnx.callback import MetricsCSV

CLOCKS = ["optimizer_step", "micro_batch", "samples_seen"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_clocks_come_first_and_new_metrics_become_last_columns(tmp_path: Path) -> None:
    table = MetricsCSV(tmp_path)
    table.log_metrics({"loss": 0.5, "samples_seen": 16.0, "micro_batch": 2, "optimizer_step": 1}, step=0)
    table.log_metrics({"control/gain": 0.25}, step=2)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "optimizer_step,micro_batch,samples_seen,loss,control/gain",
        "1,2,16,0.5,",
        "2,,,,0.25",
    ]


def test_every_row_is_on_disk_at_once_and_nothing_else_is_left(tmp_path: Path) -> None:
    table = MetricsCSV(tmp_path / "run")
    for step in range(3):
        table.log_metrics({"loss": step / 7}, step=step)
        assert float(read(table.path)[-1]["loss"]) == pytest.approx(step / 7)
        assert [path.name for path in table.path.parent.iterdir()] == ["metrics.csv"]


def test_an_existing_file_is_continued(tmp_path: Path) -> None:
    MetricsCSV(tmp_path).log_metrics({"loss": 1.5}, step=1)
    again = MetricsCSV(tmp_path)
    again.log_metrics({"loss": 2.5, "lr": 1e-5}, step=2)
    assert [(row["optimizer_step"], row["loss"], row["lr"]) for row in read(again.path)] == [
        ("1", "1.5", ""),
        ("2", "2.5", "1e-05"),
    ]


def test_a_resumed_run_drops_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    first = MetricsCSV(tmp_path)
    for step in range(1, 6):
        first.log_metrics({"loss": float(step), "samples_seen": 8 * step}, step=step)
    resumed = MetricsCSV(tmp_path)
    resumed.truncate_after(3)
    assert [row["optimizer_step"] for row in read(resumed.path)] == ["1", "2", "3"]
    for step in range(4, 6):
        resumed.log_metrics({"loss": float(step), "samples_seen": 8 * step}, step=step)
    whole = MetricsCSV(tmp_path / "whole")
    for step in range(1, 6):
        whole.log_metrics({"loss": float(step), "samples_seen": 8 * step}, step=step)
    assert resumed.path.read_text() == whole.path.read_text()


def test_truncating_where_nothing_was_written_writes_nothing(tmp_path: Path) -> None:
    MetricsCSV(tmp_path).truncate_after(10)
    assert list(tmp_path.iterdir()) == []


def test_a_row_torn_by_a_crash_is_dropped(tmp_path: Path) -> None:
    table = MetricsCSV(tmp_path)
    table.log_metrics({"loss": 1.0}, step=1)
    with table.path.open("a") as file:
        file.write("2,,")
    again = MetricsCSV(tmp_path)
    again.log_metrics({"loss": 3.0}, step=3)
    assert [(row["optimizer_step"], row["loss"]) for row in read(again.path)] == [("1", "1"), ("3", "3")]


class Logs(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.weight**2
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_logs_into_it(tmp_path: Path) -> None:
    table = MetricsCSV(tmp_path)
    trainer = Trainer(
        max_steps=3,
        logger=table,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Logs(), DataLoader(torch.zeros(3, 1)))  # pyright: ignore[reportArgumentType]
    losses = [float(row["loss"]) for row in read(table.path)]
    assert losses == pytest.approx([1.0, 0.64, 0.4096])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
