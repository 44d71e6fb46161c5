"""What a large data set costs before the first step: time to start and memory, against the number of items.

python benchmarks/index.py [1000 1000000]    numbers of items; they are entries of a prompt.json over 1,000 files
"""

import gc
import json
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

FILES = 1000
SIDE = 16


def write_entries(folder: Path, count: int) -> None:
    """A data set of `count` entries in the Fill50K layout, of the same few small files again and again."""
    random = np.random.default_rng(0)
    for kind in ("source", "target"):
        (folder / kind).mkdir(parents=True)
        for i in range(FILES):
            cv2.imwrite(str(folder / kind / f"{i}.png"), random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    with (folder / "prompt.json").open("w") as file:
        for i in range(count):
            names = {"source": f"source/{i % FILES}.png", "target": f"target/{i % FILES}.png"}
            file.write(json.dumps(names | {"prompt": f"a picture of thing number {i}"}) + "\n")


def resident() -> int:
    """Bytes of this process that are in memory and its own: what is mapped from files is not."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def start(root: Path, cache: Path) -> tuple[dict[str, float], int, int]:
    """List, index, split and deal the first 100 batches; seconds of each, and memory taken: at the end, at the peak."""
    from cnx.data.index import index_items, positions
    from cnx.data.items import Fill50KLayout
    from cnx.data.order import SeededBatches

    gc.collect()
    before, began = resident(), time.perf_counter()
    seconds = {}

    def lap(name: str) -> None:
        nonlocal began
        seconds[name], began = time.perf_counter() - began, time.perf_counter()

    items = Fill50KLayout()(str(root), None, "raise", cache)
    lap("list")
    records = index_items(items, cache, stop_at_bad=True)
    lap("index")
    train = np.flatnonzero(positions(records["target"]) >= 0.02)
    lap("split")
    batches = iter(SeededBatches(len(train), 8, seed=0))
    for _ in range(100):
        for draw in next(batches):
            items[int(train[draw.position])]
    lap("100 batches")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return seconds, resident() - before, peak


def main(counts: list[int]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 140
    title = "Start-up, in seconds; memory of its own after it, peak with what is mapped from files"
    table = Table("items", "start", "list", "index", "split", "100 batches", "memory", "peak", title=title)
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            root, cache = Path(folder) / "data", Path(folder) / "cache"
            write_entries(root, count)
            for name in ("first", "warm"):
                # A fresh process each, so that its memory is that of this start alone.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    seconds, memory, peak = process.submit(start, root, cache).result()
                numbers = [f"{value:.2f}" for value in seconds.values()]
                table.add_row(f"{count:,}", name, *numbers, f"{memory / 2**20:,.0f} MiB", f"{peak / 2**20:,.0f} MiB")
    console.print(table)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [1000, 1_000_000])
