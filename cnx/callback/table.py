"""Metrics as a table on disk."""

import csv
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

CLOCKS = ("optimizer_step", "micro_batch", "samples_seen")


class MetricsCSV(Logger):
    """Writes `metrics.csv` in the run folder: one row per logged mapping, empty cells for what it does not hold.

    The first columns are the three clocks, `optimizer_step`, `micro_batch` and `samples_seen`; a row without
    `optimizer_step` takes the step that it is logged at. Each row is on disk when `log_metrics` returns. A metric seen
    for the first time becomes a new last column. An existing file is continued, never deleted.

    Args:
        folder: the run folder; made on the first row if it is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] | None = None  # of the file, once it is known to end in a whole row
        self._kept: list[dict[str, str]] = []  # of the step that a resumed run goes on from

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run folder's `config.yaml` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one row, unless `truncate_after` has kept it; values that are not numbers are left out."""
        row = {name: _cell(value) for name, value in metrics.items() if isinstance(value, int | float)}
        if step is not None:
            row.setdefault("optimizer_step", str(step))
        if _measured(row) in self._kept:
            return  # what was measured after the checkpoint of the last step is measured again
        columns = self._open()
        new = [name for name in row if name not in columns]
        if new:
            self._columns = columns = columns + new
            self._write(columns, self._rows())
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writerow(row)

    @rank_zero_only
    def truncate_after(self, step: int) -> None:
        """Drops the rows after optimizer step `step`, which a run resumed from a checkpoint there writes anew."""
        if self.path.exists():
            columns = self._open()
            rows = [row for row in self._rows() if int(row["optimizer_step"] or 0) <= step]
            self._write(columns, rows)
            at_step = [row for row in rows if int(row["optimizer_step"] or 0) == step]
            self._kept = [_measured({name: cell for name, cell in row.items() if cell}) for row in at_step]

    def _open(self) -> list[str]:
        if self._columns is None:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            header = next(csv.reader(text.splitlines()), None)
            self._columns = header or list(CLOCKS)
            if not header or not text.endswith("\n"):
                # New, or the last writer was killed in the middle of a row: drop that row.
                rows = self._rows()[:-1] if header else []
                self._write(self._columns, rows)
        return self._columns

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, restval=""))

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".csv.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, self.path)


def _measured(row: dict[str, str]) -> dict[str, str]:
    """A row without what differs each time that it is measured."""
    return {name: cell for name, cell in row.items() if name != "train/images_per_second"}


def _cell(value: float) -> str:
    # Clocks that travelled through lightning come back as floats.
    return str(int(value)) if float(value).is_integer() else f"{value:.8g}"
