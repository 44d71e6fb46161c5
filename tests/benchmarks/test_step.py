"""The benchmark runs and its numbers agree with each other."""

import re
import subprocess
import sys
from pathlib import Path


def test_two_steps_are_measured_and_taken_apart(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, repository / "benchmarks" / "step.py", "steps=2", "data.batch_size=1,2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"matmul peak: [\d,]+ GFLOP/s in float32, [\d,]+ in bfloat16", done.stdout)

    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]
    speeds = [row for row in rows if row[-1].endswith("MiB")]
    assert [row[1] for row in speeds] == ["1", "2"]
    for row in speeds:
        batch, steps, images, milliseconds, flop, flop_rate = (float(row[i]) for i in (1, 3, 4, 5, 6, 7))
        assert abs(images - batch * steps) < 0.02 + 0.01 * images
        assert abs(steps * milliseconds - 1000) < 20 + milliseconds * 0.005
        assert abs(flop_rate - flop * steps) < 0.05 * flop_rate
    twice = float(speeds[1][6]) / float(speeds[0][6])
    assert 1.9 < twice < 2.1  # the work of two pictures
    shares = [[float(cell.removesuffix("%")) for cell in row[3:]] for row in rows if row[-1].endswith("%")]
    assert len(shares) == 2
    for row in shares:
        assert abs(sum(row) - 100) < 0.5
        assert sum(row[1:5]) > 50  # forward and backward are most of a step
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_is_said_in_a_line(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, repository / "benchmarks" / "step.py", "no_such_key=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no_such_key" in done.stderr and "Traceback" not in done.stderr
