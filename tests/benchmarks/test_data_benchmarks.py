"""The benchmarks of task=prepare and task=check run, and their numbers agree with each other."""

import subprocess
import sys
from pathlib import Path

import pytest


def rows_of(repository: Path, tmp_path: Path, script: str, *arguments: str) -> list[list[str]]:
    command = [sys.executable, repository / "benchmarks" / script, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]


def test_the_parts_of_preparing_add_up(repository: Path, tmp_path: Path) -> None:
    rows = rows_of(repository, tmp_path, "prepare.py", "photos=24", "size=64", "width=160", "height=120")
    parts = [row for row in rows if row[-1].endswith("%")]
    for column in (1, 2):
        milliseconds = [float(row[column].split()[0]) for row in parts]
        assert sum(milliseconds[:-1]) == pytest.approx(milliseconds[-1], abs=0.01 * len(parts))
    for _, rate, cpu, reckoned in (row for row in rows if not row[-1].endswith("%")):
        assert float(rate) > 0
        assert float(reckoned) == pytest.approx(2000 / float(cpu), rel=0.2)


def test_checking_is_timed(repository: Path, tmp_path: Path) -> None:
    rows = rows_of(repository, tmp_path, "check.py", "pairs=40", "size=64", "sample=20")
    assert [row[0] for row in rows] == ["decode all", "copies across the split", "fit of 20 maps", "all"]
    assert float(rows[-1][1]) == pytest.approx(sum(float(row[1]) for row in rows[:-1]), abs=0.3)


def test_an_unknown_condition_is_said_in_a_line(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, repository / "benchmarks" / "prepare.py", "condition=none_such"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "none_such" in done.stderr and "Traceback" not in done.stderr
