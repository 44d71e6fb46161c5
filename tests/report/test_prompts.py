import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnx.errors import InputError
from cnx.report.compare import compare
from cnx.report.page import run_report
from cnx.report.prompts import prompt_grid, prompt_wall
from cnx.report.saved import SavedRun

SaveRun = Callable[..., Path]


def measured(folder: Path, brightness: int = 0, **fidelity: float) -> Path:
    """Give a run folder results under kinds of prompt; the pictures of kind k, item i are of one brightness."""
    modes = {
        mode: {
            "control_fidelity": {"raw": value, "floor": 0.0, "ceiling": 1.0, "calibrated": value},
            "prompts": [f"<{mode}> of {i}" for i in range(2)],
        }
        for mode, value in fidelity.items()
    }
    (folder / "prompts.json").write_text(json.dumps({"optimizer_steps": 300, "prompt_modes": modes}))
    plain = np.ones((2, 32, 32, 3), np.uint8)
    items = np.array([1, 2], np.uint8)[:, None, None, None]
    drawn = {mode: plain * (brightness + 10 * (k + 1)) for k, mode in enumerate(fidelity)}
    np.savez(folder / "samples" / "prompts.npz", control=plain * items, target=plain * 9, **drawn)
    return folder


def test_the_grid_shows_each_item_under_each_kind_of_prompt(save_run: SaveRun) -> None:
    run = measured(save_run("a"), none=0.1, insufficient=0.2, conflicting=0.3, perfect=0.4)
    page = np.asarray(Image.open(prompt_grid(run)))
    shown = [int(level) for level in np.unique(page[..., 0]) if (page[..., 0] == level).sum() >= 2 * 128 * 128]
    assert {9, 10, 20, 30, 40} <= set(shown)
    columns = [np.flatnonzero((page[..., 0] == level).sum(axis=0) >= 256) for level in (9, 10, 20, 30, 40)]
    assert [int(column.min()) for column in columns] == sorted(int(column.min()) for column in columns)
    with pytest.raises(InputError, match="no prompts.json"):
        prompt_grid(save_run("b"))


def test_a_run_page_has_the_table_and_the_pictures_and_prompts_stay_text(save_run: SaveRun) -> None:
    text = run_report(measured(save_run("a"), conflicting=0.3, perfect=0.45)).read_text()
    assert "Under each kind of prompt" in text and "<td>0.45</td>" in text and "<conflicting>" not in text
    assert "Under each kind of prompt" not in run_report(save_run("b")).read_text()


def test_arms_are_compared_under_each_kind_of_prompt_with_an_interval_over_seeds(
    save_run: SaveRun, tmp_path: Path
) -> None:
    runs = [
        measured(save_run(f"{init}{seed}", choices={"init": init}, seed=seed), none=value, perfect=0.8)
        for init, values in (("sd_copy", (0.5, 0.6, 0.7)), ("scratch", (0.1, 0.1, 0.1)))
        for seed, value in enumerate(values)
    ]
    runs.append(save_run("unmeasured", choices={"init": "lite"}))
    out = tmp_path / "out"
    comparison = compare(runs, out)
    table = next(table for table in comparison.tables if table.title.startswith("Fidelity under"))
    assert table.columns == ["arm", "runs", "no prompt", "perfect"]
    assert table.rows == [
        ["sd_copy", "3", "0.60 [0.35, 0.85]", "0.80 [0.80, 0.80]"],
        ["scratch", "3", "0.10 [0.10, 0.10]", "0.80 [0.80, 0.80]"],
        ["lite", "0", "–", "–"],
    ]
    with (out / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["fidelity_none_prompt"] for row in rows] == ["0.5", "0.6", "0.7", "0.1", "0.1", "0.1", ""]
    assert "prompts.png" in (out / "comparison.md").read_text() and (out / "prompts.png").is_file()
    page = (out / "report.html").read_text()
    assert re.search(r"<h2>Under each kind of prompt</h2>\s*<div[^>]*>\s*<img src=.data:image/webp", page)


def test_the_wall_shows_one_item_in_every_run(save_run: SaveRun) -> None:
    first, other = (measured(save_run(name), brightness, none=0.1) for name, brightness in (("a", 0), ("b", 100)))
    with np.load(other / "samples" / "prompts.npz") as saved:
        turned = {name: saved[name][::-1] for name in saved}
    turned["none"] = turned["none"] + np.array([0, 5], np.uint8)[:, None, None, None]  # the shared item now comes last
    np.savez(other / "samples" / "prompts.npz", **turned)
    page = prompt_wall([SavedRun(first), SavedRun(other)], ["a", "b"])
    assert page is not None
    levels, counts = np.unique(np.asarray(page)[..., 0], return_counts=True)
    shown = {int(level) for level, count in zip(levels, counts, strict=True) if count >= 128 * 128}
    assert {10, 115} <= shown and 110 not in shown
    assert prompt_wall([SavedRun(save_run("c"))], ["c"]) is None


def test_arms_that_are_experiments_are_called_by_their_names(save_run: SaveRun, tmp_path: Path) -> None:
    arms = {"ablation_zero_conv": ("full", "sd_copy"), "ablation_lite": ("lite", "random_control")}
    runs = [
        save_run(f"{name}{seed}", choices={"experiment": name, "model": model, "init": init}, seed=seed)
        for name, (model, init) in arms.items()
        for seed in (0, 1)
    ]
    comparison = compare(runs, tmp_path / "out")
    assert list(comparison.arms) == list(arms)
    assert comparison.tables[0].columns[:4] == ["experiment", "model", "init", "seed"], "the table says all"
