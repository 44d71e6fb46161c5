"""Compare runs after the fact."""

from datetime import datetime
from pathlib import Path

import rich
from omegaconf import DictConfig, ListConfig

from cnx.errors import InputError
from cnx.report.compare import compare
from cnx.task.run_folder import read_config


def run(cfg: DictConfig) -> None:
    """Compare the run folders `cfg.compare`, write the comparison into `cfg.out`, and print its table.

    Unfinished runs are listed as missing. Raises InputError for a folder that is no run, and if none is finished.
    """
    if not isinstance(cfg.compare, ListConfig):
        raise InputError(
            f"compare={cfg.compare}: give run folders as a list, 'compare=[runs/default/a,runs/default/b]'"
        )
    runs: dict[Path, Path] = {}
    for folder in map(Path, cfg.compare):
        read_config(folder)  # that it is a run folder
        runs.setdefault(folder.resolve(), folder)  # named twice, by whatever path, it is one run
    out = Path(cfg.out or Path(cfg.runs) / "compare" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    comparison = compare(list(runs.values()), out)
    console = rich.get_console()
    console.print(comparison)
    console.print(f"Comparison {out}: open {out / 'report.html'}", soft_wrap=True, markup=False, highlight=False)
