"""Measure how fast task=check looks at a data set.

    python benchmarks/check.py [pairs=2000] [size=512] [target_format=jpg] [sample=500] [workers=2]

Pairs are drawn first, in a temporary folder, and all different: 50,000 take 6 GB. `for 50,000` is reckoned from the CPU
time, with `workers` cores free; the comparison of maps with pictures costs the same however many pairs there are.
"""

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import rich  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.prepare import draw_photo  # noqa: E402
from cnx.condition import Canny  # noqa: E402
from cnx.data.folder import Item  # noqa: E402
from cnx.data.prepare.pair import encode  # noqa: E402
from cnx.data.survey import judge_fit, near_copies, survey  # noqa: E402

OWN = {"pairs": "2000", "size": "512", "target_format": "jpg", "sample": "500", "workers": "2"}
SCENES = 64  # drawn whole; the pairs are these, shifted and recoloured, so that drawing takes no longer than checking


def draw(number: int, scenes: list[np.ndarray], size: int, folder: Path, suffix: str) -> Item:
    """Write one pair that no other pair equals."""
    random = np.random.default_rng(number)
    scene = scenes[number % len(scenes)][..., random.permutation(3)]
    top, left = random.integers(0, size // 2, 2)
    picture = np.ascontiguousarray(scene[top : top + size, left : left + size])
    cv2.circle(picture, tuple(random.integers(0, size, 2).tolist()), size // 8, random.integers(0, 256, 3).tolist(), -1)
    item = Item(folder / "source" / f"{number}.png", folder / "target" / f"{number}.{suffix}", "a photo")
    item.source.write_bytes(encode(Canny()(picture), "png"))
    item.target.write_bytes(encode(picture, suffix))
    return item


def main(arguments: list[str]) -> None:
    own = OWN | dict(argument.split("=", 1) for argument in arguments)
    pairs, size, sample, workers = (int(own[key]) for key in ("pairs", "size", "sample", "workers"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for kind in ("source", "target"):
            (folder / kind).mkdir()
        cv2.setNumThreads(1)
        scenes = [np.asarray(draw_photo(number, 3 * size // 2, 3 * size // 2)) for number in range(SCENES)]
        with ThreadPoolExecutor(workers) as pool:
            items = list(pool.map(lambda n: draw(n, scenes, size, folder, own["target_format"]), range(pairs)))

        rich.get_console().quiet = True  # no progress among the numbers
        rows: list[tuple[str, float, float, float]] = []

        def timed(part: str, do, growing: bool):
            began, cpu = time.perf_counter(), time.process_time()
            result = do()
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            rows.append((part, wall, cpu, cpu / workers * (50_000 / pairs if growing else 1)))
            return result

        found = timed("decode all", lambda: survey(items, 0.02, workers), growing=True)
        copies = timed("copies across the split", lambda: near_copies(found, items), growing=True)
        fit = timed(f"fit of {sample:,} maps", lambda: judge_fit(items, found, Canny(), sample, workers), growing=False)
        assert not found.unusable and not copies and fit.whole
    table = Table(
        "part", "seconds", "CPU seconds", "for 50,000", title=f"{pairs:,} pairs, {size} px, {own['target_format']}"
    )
    for part, *numbers in [*rows, ("all", *(sum(row[i] for row in rows) for i in (1, 2, 3)))]:
        table.add_row(part, *(f"{number:.1f}" for number in numbers))
    rich.get_console().quiet = False
    rich.print(table)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{os.cpu_count()} cores, load average {load:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
