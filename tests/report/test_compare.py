import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cnx.errors import InputError
from cnx.report.compare import compare
from cnx.report.curves import _draw
from cnx.report.page import run_report
from cnx.report.saved import SavedRun
from cnx.report.table import Table
from cnx.report.wall import picture_wall, shared_items, spread

SaveRun = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def table(tables: list[Table], begins: str) -> dict[str, dict[str, str]]:
    """The rows of a table by their first cell."""
    found = next(table for table in tables if table.title.startswith(begins))
    return {row[0]: dict(zip(found.columns, row, strict=True)) for row in found.rows}


def seeds(save_run: SaveRun, init: str, finals: list[float], **more) -> list[Path]:
    return [
        save_run(f"{init}{seed}", fidelity=[0, final, final, final], choices={"init": init}, seed=seed, **more)
        for seed, final in enumerate(finals)
    ]


def test_arms_have_a_mean_and_an_interval_and_are_paired_over_seeds(save_run: SaveRun, out: Path) -> None:
    runs = [*seeds(save_run, "sd_copy", [0.5, 0.6, 0.7]), *seeds(save_run, "scratch", [0.2, 0.4, 0.6])]
    comparison = compare(runs, out)
    # s = 0.1: t(0.975; 2) · 0.1 / sqrt(3) = 0.2484; s = 0.2: 0.4968.
    arms = table(list(comparison.tables), "Arms")
    assert arms["sd_copy"]["fidelity"] == "0.60 [0.35, 0.85]"
    assert arms["scratch"]["fidelity"] == "0.40 [-0.10, 0.90]"
    # Differences -0.3, -0.2, -0.1: pairing takes out what the seeds share.
    (paired,) = table(list(comparison.tables), "Fidelity minus that of sd_copy").values()
    assert paired == {"arm": "scratch", "over seeds": "-0.20 [-0.45, +0.05]", "seeds": "3"}


def test_only_seeds_that_both_arms_have_are_paired(save_run: SaveRun, out: Path) -> None:
    runs = [*seeds(save_run, "sd_copy", [0.5, 0.9]), *seeds(save_run, "scratch", [0.2, 0.5, 0.1])]
    (paired,) = table(list(compare(runs, out).tables), "Fidelity minus").values()
    assert paired["seeds"] == "2" and paired["over seeds"].startswith("-0.35 [")


def test_items_are_paired_by_their_control_map_and_averaged_over_seeds(save_run: SaveRun, out: Path) -> None:
    runs = [
        *seeds(save_run, "sd_copy", [0.5, 0.5], items=[0.4, 0.6]),
        *seeds(save_run, "scratch", [0.6, 0.6], items=[0.8, 0.4], controls=(2, 1)),  # the other way round
    ]
    (paired,) = table(list(compare(runs, out).tables), "Fidelity minus").values()
    # Item 1: 0.4 - 0.4 = 0; item 2: 0.8 - 0.6 = 0.2. t(0.975; 1) · 0.1414 / sqrt(2) = 1.27.
    assert paired["over held-out items"] == "+0.10 [-1.17, +1.37]" and paired["items"] == "2"


def test_a_table_row_says_what_varied_then_what_came_of_it(save_run: SaveRun, out: Path) -> None:
    runs = [
        save_run("b", choices={"init": "scratch"}, fidelity=[0.0, 0.25]),
        save_run("a", fidelity=[0, 0.6, 0.7, 0.8], converged=100),
    ]
    comparison = compare(runs, out)
    with (out / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [str(run) for run in runs], "as given"
    assert list(rows[0])[:2] == ["init", "control_fidelity"]
    assert [row["control_fidelity"] for row in rows] == ["0.25", "0.8"]
    first, second = (out / "comparison.md").read_text().split("| run |\n")[1].split("\n")[1:3]
    assert first == "| scratch | 0.25 | not by 100 | 61 | 12.3 | b |"
    assert second == "| sd_copy | 0.80 | 100 (after 0) | 61 | 12.3 | a |"
    console = Console(width=80, record=True, file=(out / "printed").open("w"))
    console.print(comparison)
    assert "100 (after 0)" in console.export_text()


def test_a_run_that_was_ended_or_is_not_confirmed_is_not_set_beside_others_without_a_word(
    save_run: SaveRun, out: Path
) -> None:
    ended, late = save_run("ended", seed=0), save_run("late", seed=1)
    for run, more in (
        (ended, {"stopped_because": "flat: converged at step 100, and so on"}),
        (late, {"convergence_unconfirmed": 200}),
    ):
        summary = json.loads((run / "summary.json").read_text()) | more
        (run / "summary.json").write_text(json.dumps(summary))
    comparison = compare([ended, late], out)
    assert [row[2] for row in comparison.tables[0].rows] == ["not by 300", "200, unconfirmed"]
    assert "test, seed 0 was ended at step 300: flat: converged at step 100, and so on." in comparison.notes
    run_report(ended)
    run_report(late)
    assert "It was ended early, flat: converged at step 100" in (ended / "report.html").read_text()
    assert "It has been at 0.5 or more since step 200" in (late / "report.html").read_text()


def test_missing_runs_are_listed_and_never_dropped(save_run: SaveRun, out: Path, tmp_path: Path) -> None:
    runs = [
        save_run("done"),
        save_run("stopped", finished=False, choices={"init": "scratch"}),
        save_run("failed", finished=False, choices={"init": "lite"}),
        tmp_path / "runs" / "never",
    ]
    comparison = compare(runs, out, missing={"failed": "CUDA out of memory", "job 7": "cancelled"})
    missing = table(list(comparison.tables), "Missing")
    assert {name: row["why"] for name, row in missing.items()} == {
        "stopped": "not finished: no summary.json; last row of metrics.csv at step 300",
        "failed": "CUDA out of memory",
        "never": "not begun: no config.yaml",
        "job 7": "cancelled",
    }
    assert missing["stopped"]["arm"] == "scratch"
    assert [entry.run.name for entry in comparison.entries] == ["done"]
    for text in ((out / name).read_text() for name in ("comparison.md", "comparison.csv", "report.html")):
        assert all(name in text for name in missing)


def test_an_unfinished_run_of_one_configuration_is_listed_by_its_folder(save_run: SaveRun, out: Path) -> None:
    comparison = compare([save_run("done"), save_run("stopped", finished=False)], out)
    assert list(table(list(comparison.tables), "Missing")) == ["stopped"]


def test_what_came_between_two_commits_is_a_difference_where_it_is_at_work(save_run: SaveRun, out: Path) -> None:
    new = {"memory": {"half_locked": False}, "choices": {"optimizer": "adamw"}}
    runs = [save_run("a"), save_run("b", seed=1, noise_offset=0.0, **new), save_run("c", noise_offset=0.1, **new)]
    for run, commit in zip(runs, "abb", strict=True):
        file = run / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"git_commit": commit}))
    comparison = compare(runs, out)
    assert [[entry.run.name for entry in arm] for arm in comparison.arms.values()] == [["a", "b"], ["c"]]
    assert list(comparison.entries[0].varied) == ["noise_offset", "seed"]


def test_an_array_is_damaged_wherever_it_is(save_run: SaveRun) -> None:
    """Compressed arrays fail in several ways; whichever byte it is, the file is named."""
    run = save_run("run")
    file = run / "samples" / "step_000300.npz"
    np.savez_compressed(file, samples=SavedRun(run).samples(300))
    whole, found = file.read_bytes(), 0
    for at in range(len(whole) % 11, len(whole), 11):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            SavedRun(run).samples(300)
        except InputError as error:
            found += str(file) in str(error)
    assert found > 10


def test_a_run_that_never_began_is_named_in_full(save_run: SaveRun, out: Path) -> None:
    never = {"data.root=data/mine init=scratch": "failed", "data.root=other/mine init=scratch": "planned"}
    comparison = compare([save_run("done")], out, missing=never)
    assert list(table(list(comparison.tables), "Missing")) == list(never)


def test_an_arm_without_an_option_is_named(save_run: SaveRun, out: Path) -> None:
    runs = [
        save_run("a", choices={"experiment": "transfer", "average": "ema"}),
        save_run("b", choices={"experiment": None, "average": "ema"}),
        save_run("c", choices={"experiment": None, "average": None}),
    ]
    assert list(compare(runs, out).arms) == ["transfer, ema", "test, ema", "test, no average"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", b"a: [1"),
        ("samples/heldout.npz", b"PK no archive"),
        ("samples/step_000300.npz", b""),
        ("samples/probe.json", b'{"floor'),
        ("samples/probe.json", b"\xff\xfe{}"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(
    save_run: SaveRun, out: Path, file: str, content: bytes
) -> None:
    damaged = save_run("damaged")
    (damaged / file).write_bytes(content)
    with pytest.raises(InputError, match=f"{damaged / file}") as error:
        compare([save_run("whole"), damaged], out)
    assert "\n" not in str(error.value) and not out.exists()


def test_a_file_is_no_place_for_a_comparison(save_run: SaveRun, out: Path) -> None:
    out.write_text("mine")
    for place in (out, out / "below"):
        with pytest.raises(InputError, match="give a folder"):
            compare([save_run("whole")], place)
    assert out.read_text() == "mine"


def test_a_run_without_steps_has_one_mark_on_its_axis(save_run: SaveRun, out: Path) -> None:
    figure = _draw(compare([save_run("untrained", fidelity=[0.0])], out).panels(), width=4.5, height=3.2)
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels() if low <= label.get_position()[0] <= high]
    assert shown == ["0"]


def test_long_names_and_dollars_fit_into_a_legend(save_run: SaveRun, out: Path) -> None:
    prompt = "a bird that costs $5_{ and $6, " * 8
    runs = [save_run("a", default_prompt="a bird"), save_run("b", default_prompt=prompt)]
    comparison = compare(runs, out)
    figure = _draw(comparison.panels(), width=4.5, height=3.2)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    shown = [text.get_text() for text in legend.get_texts()][1]
    assert shown.count("\\$") == 16 and "".join(shown.split()) == "".join(
        f"default_prompt {prompt}".replace("$", "\\$").split()
    )


def test_without_a_finished_run_there_is_nothing_to_compare(save_run: SaveRun, out: Path) -> None:
    with pytest.raises(InputError, match="no finished run.*half: not finished"):
        compare([save_run("half", finished=False)], out)
    with pytest.raises(InputError, match="no run folders"):
        compare([], out)
    assert not out.exists()


def test_runs_without_a_probe_are_compared_in_time_only(save_run: SaveRun, out: Path) -> None:
    run = save_run("plain")
    (run / "samples" / "probe.json").unlink()
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({"wall_seconds": 5, "optimizer_steps": summary["optimizer_steps"]}))
    comparison = compare([run], out)
    assert comparison.tables[0].rows == [["–", "–", "5", "–", "plain"]]
    assert sorted(file.name for file in out.iterdir()) == ["comparison.csv", "comparison.md", "report.html"]


def test_a_base_that_cannot_show_control_is_marked(save_run: SaveRun, out: Path) -> None:
    comparison = compare([save_run("noise", fidelity=[0.0, 0.0], degenerate=True), save_run("birds", seed=1)], out)
    assert comparison.tables[0].rows[0][1] == "0.00*"
    assert any(note.startswith("*:") for note in comparison.notes)


def test_curves_run_over_both_clocks_with_convergence_marked(save_run: SaveRun, out: Path) -> None:
    runs = [save_run("small", converged=200, batch=4), save_run("large", converged=100, batch=8, size=8)]
    by_steps, by_samples = compare(runs, out).panels()
    assert [curve.xs for curve in by_steps.curves] == [[0, 100, 200, 300]] * 2
    assert [curve.xs for curve in by_samples.curves] == [[0, 400, 800, 1200], [0, 800, 1600, 2400]]
    assert [curve.converged for curve in by_steps.curves] == [200, 100]
    assert [curve.converged for curve in by_samples.curves] == [800, 800]
    with Image.open(out / "fidelity.png") as image:
        assert image.width > 1500


def test_the_course_is_told_at_the_steps_that_all_runs_were_probed_at(save_run: SaveRun, out: Path) -> None:
    copied = [save_run(f"c{seed}", fidelity=[0, 0.2 + 0.1 * seed, 0.6, 0.8], seed=seed) for seed in (0, 1)]
    short = save_run("s", fidelity=[0, -0.001, 0.1], choices={"init": "scratch"})
    course = table(list(compare([*copied, short], out).tables), "Fidelity at optimizer steps: means over seeds")
    assert course == {
        "sd_copy": {"arm": "sd_copy", "0": "0.00", "100": "0.25", "200": "0.60"},
        "scratch": {"arm": "scratch", "0": "0.00", "100": "0.00", "200": "0.10"},
    }
    with (out / "fidelity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["init", "seed", "optimizer_steps", "samples_seen", "control_fidelity", "run"]
    assert len(rows) == 4 + 4 + 3, "every probe, shared or not"
    assert list(rows[5].values()) == ["sd_copy", "1", "100", "400", "0.30000000000000004", str(copied[1])]


def test_the_course_of_runs_that_share_samples_is_told_by_samples(save_run: SaveRun, out: Path) -> None:
    runs = [
        save_run("small", fidelity=[0, 0.1, 0.2, 0.3, 0.4], batch=4, size=4),
        save_run("large", fidelity=[0, 0.5, 0.9], batch=8, size=8),  # at steps 0, 100 and 200
    ]
    found = table(list(compare(runs, out).tables), "Fidelity at optimizer steps")
    assert list(found["size 4"]) == ["arm", "0", "100", "200"], "as many are shared by steps: those come first"
    runs.append(save_run("largest", fidelity=[0, 0.0], batch=16, size=16))
    assert not any(made.title.startswith("Fidelity a") for made in compare(runs, out).tables), "0 and 100 are no course"
    probe = json.loads((runs[1] / "samples" / "probe.json").read_text())
    for place, measured in enumerate(probe["probes"]):
        measured["step"] = 50 * place  # the same 200 and 400 samples apart: 0, 400, 800
    (runs[1] / "samples" / "probe.json").write_text(json.dumps(probe))
    (runs[1] / "metrics.csv").write_text(
        "optimizer_step,samples_seen\n" + "".join(f"{50 * i},{400 * i}\n" for i in range(3))
    )
    found = table(list(compare(runs[:2], out).tables), "Fidelity after samples seen")
    assert list(found["size 8"].values()) == ["size 8", "0.00", "0.50", "0.90"]
    assert list(found["size 4"]) == ["arm", "0", "400", "800"]


def test_probes_of_other_steps_are_not_taken_for_the_same(save_run: SaveRun, out: Path) -> None:
    runs = [save_run("a", fidelity=[0, 0.1, 0.2, 0.3] + [0.4] * 200), save_run("b", seed=1)]
    probe = json.loads((runs[1] / "samples" / "probe.json").read_text())
    for place, measured in enumerate(probe["probes"]):
        measured["step"] = 0 if place == 0 else 100 * place + 50  # of 20,300 steps that is little
    (runs[1] / "samples" / "probe.json").write_text(json.dumps(probe))
    (runs[1] / "metrics.csv").write_text("optimizer_step,samples_seen\n0,0\n150,600\n250,1000\n350,1400\n")
    assert not any(made.title.startswith("Fidelity a") for made in compare(runs, out).tables)


def test_phases_are_marked_on_both_clocks(save_run: SaveRun, out: Path) -> None:
    run = save_run("phased", batch=8)
    (run / "phases.json").write_text(
        json.dumps([{"phase": 1, "step": 200, "when": "converged", "changed": {"links": "all", "lr": None}}])
    )
    assert [panel.curves[0].phases for panel in compare([run], out).panels()] == [[200], [1600]]
    assert "Phase 1 began at step 200, on convergence: links all, lr null." in run_report(run).read_text()


def test_a_wall_shows_one_item_in_every_row_wherever_its_run_has_it(save_run: SaveRun) -> None:
    runs = [
        SavedRun(save_run("a", controls=(10, 20), prompts=("one", "two"))),
        SavedRun(save_run("b", controls=(20, 10), prompts=("two", "one"))),
        SavedRun(save_run("c", controls=(30, 10), prompts=("three", "one"))),
    ]
    assert shared_items(runs) == [[0], [1], [1]]
    wall = picture_wall(runs, ["a", "b", "c"])
    assert wall is not None
    hits = (np.asarray(wall) == 10).all(axis=2)
    assert hits.sum() >= 3 * 96 * 96, "its map, once a row"
    assert (np.asarray(wall) == 30).all(axis=2).sum() < 96 * 96


def test_a_wall_shows_the_same_picture_under_each_runs_own_kind_of_map(save_run: SaveRun) -> None:
    runs = [SavedRun(save_run("edges", controls=(10, 20))), SavedRun(save_run("depth", controls=(30, 40)))]
    assert shared_items(runs) == [[], []] and shared_items(runs, by="target") == [[0, 1], [0, 1]]
    wall = np.asarray(picture_wall(runs, ["edges", "depth"]))
    assert all((wall == grey).all(axis=2).sum() >= 96 * 96 for grey in (10, 30))


def test_runs_that_share_no_item_show_their_own_and_say_so(save_run: SaveRun, out: Path) -> None:
    runs = [save_run("a", controls=(10, 20)), save_run("b", controls=(30, 40), seed=1)]
    assert any("share no held-out item" in note for note in compare(runs, out).notes)
    assert (out / "wall.png").is_file()
    runs[1] = save_run("c", controls=(20, 30), seed=1)
    assert any("share 1 of 2 held-out items" in note for note in compare(runs, out).notes)


def test_arms_of_several_conditions_are_not_set_against_each_other(save_run: SaveRun, out: Path) -> None:
    runs = [
        save_run(name, controls=controls, choices={"condition": name})
        for name, controls in (("canny", (10, 20)), ("depth", (30, 40)))
    ]
    comparison = compare(runs, out)
    assert not any(table.title.startswith("Fidelity minus") for table in comparison.tables)
    assert any("own condition (canny, depth)" in note for note in comparison.notes)
    assert not any("share no held-out item" in note for note in comparison.notes), "the same pictures"


def test_the_columns_of_a_wall_are_steps_that_most_runs_drew(save_run: SaveRun) -> None:
    runs = [
        SavedRun(save_run(name, fidelity=[0.1 * i for i in range(n)])) for name, n in (("a", 4), ("b", 4), ("c", 9))
    ]
    few, many = picture_wall(runs, ["a", "b", "c"]), picture_wall(runs[2:], ["c"])
    assert few is not None and many is not None and few.width < many.width


def test_some_of_many_steps_are_shown_the_first_and_the_last_always() -> None:
    assert spread(range(0, 100, 10), 4) == [0, 30, 60, 90]
    assert spread([5], 4) == [5] and spread([], 4) == []
