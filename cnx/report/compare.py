"""Runs compared: a table, figures and a page, made from their folders only."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnx.errors import InputError
from cnx.report.comparison import Comparison, read_comparison
from cnx.report.curves import save_png
from cnx.report.grid import save_image
from cnx.report.page import comparison_page, write
from cnx.report.prompts import HEADS, read_prompt_ablation
from cnx.report.wall import picture_wall

# Of summary.json, in the order of the CSV's columns.
NUMBERS = (
    "convergence_step", "convergence_after", "fidelity_25_step", "fidelity_75_step", "control_gain", "optimizer_steps",
    "samples_seen", "wall_seconds", "images_per_second",
)  # fmt: skip


def compare(
    runs: Sequence[str | Path],
    out: str | Path,
    missing: Mapping[str, str] | None = None,
    title: str = "Comparison",
) -> Comparison:
    """Compare finished runs: write comparison.csv, comparison.md, the figures and report.html into `out`.

    The runs are grouped into arms that differ in more than the seed. With several seeds an arm has a mean and a 95%
    interval (Student's t). Each later arm is compared with the first by pairs: over the seeds that both have, and over
    the held-out items that both drew, each item's difference averaged over those seeds. The figures are fidelity.png,
    with its points in fidelity.csv, left out when no run has a probe; wall.png, when none has pictures; and
    prompts.png, when none was drawn under several kinds of prompt. `rich.print` of the result prints the tables.

    Args:
        runs: run folders, in the order in which to show the arms. One without summary.json is listed as missing: with
            the reason that `missing` gives for its name, else with how far it came.
        out: a folder, made if it is not there.
        missing: why runs are missing, {name: reason}. A name that is none of the `runs` is a run without a folder.

    Raises:
        InputError: none of the runs is finished, a file of theirs is damaged, or `out` is no folder; nothing is
            written.
    """
    comparison = read_comparison([Path(run) for run in runs], missing or {}, title)
    out = Path(out)
    entries, panels = comparison.entries, comparison.panels()
    wall = picture_wall([entry.run for entry in entries], [entry.label for entry in entries])
    prompts = comparison.prompt_wall()
    page = comparison_page(comparison, wall, prompts, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"out={out}: is a file, or lies in one; give a folder") from None
    if panels:
        save_png(panels, out / "fidelity.png")
        _write_csv(out / "fidelity.csv", _probe_rows(comparison))
    if wall:
        save_image(wall, out / "wall.png")
    if prompts:
        save_image(prompts, out / "prompts.png")
    _write_csv(out / "comparison.csv", _run_rows(comparison))
    pictures = [
        f"![{name}]({name}.png)\n"
        for name, made in (("fidelity", panels), ("wall", wall), ("prompts", prompts))
        if made
    ]
    notes = [f"{note}\n" for note in comparison.notes]
    tables = [table.markdown() for table in comparison.tables]
    write(out / "comparison.md", "\n".join([f"# {title}\n", *tables[:1], *notes, *pictures, *tables[1:]]))
    write(out / "report.html", page)
    return comparison


def _run_rows(comparison: Comparison) -> Iterable[Sequence[Any]]:
    """One row a run: what varied, then the numbers as summary.json has them; missing runs last, without numbers."""
    columns = list(comparison.entries[0].varied)
    found = {entry.run.folder: read_prompt_ablation(entry.run) for entry in comparison.entries}
    modes = HEADS if any(found.values()) else ()
    heads = [*NUMBERS, *(f"fidelity_{mode}_prompt" for mode in modes)]
    yield [*columns, "control_fidelity", *heads, "run", "status"]
    for entry in [*comparison.entries, *comparison.missing]:
        run = entry.run
        varied = [entry.varied.get(column) for column in columns]
        numbers = [run.final_fidelity, *(run.summary.get(name) for name in NUMBERS)]
        under = results.fidelity if (results := found.get(run.folder)) else {}
        numbers += [under.get(mode) for mode in modes]
        yield [*varied, *numbers, run.folder.as_posix(), entry.missing or "finished"]


def _probe_rows(comparison: Comparison) -> Iterable[Sequence[Any]]:
    """One row a probe of the finished runs: what varied, both clocks, calibrated control fidelity."""
    columns = list(comparison.entries[0].varied)
    yield [*columns, "optimizer_steps", "samples_seen", "control_fidelity", "run"]
    for entry in comparison.entries:
        run = entry.run
        for step, value in run.fidelity:
            varied = [entry.varied[column] for column in columns]
            yield [*varied, step, run.samples_seen.get(step), value, run.folder.as_posix()]


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    os.replace(part, path)
