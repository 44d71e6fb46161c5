"""Write a synthetic data set as a folder in the Fill50K layout, once; later calls find it there."""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from filelock import FileLock
from jaxtyping import UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cnx.data.synthetic.pair import Scenes
from cnx.errors import InputError

CHUNK = 64  # items a process draws before it reports: about half a second
STRAY = 60  # seconds; a younger temporary file may belong to another process that writes the same folder


def generate(scenes: Scenes, root: Path | str, size: int, count: int | None = None, workers: int | None = None) -> Path:
    """Make `root` hold at least the first `count` items of `scenes` at `size` pixels, and return it.

    What is there already is kept: an interrupted generation is completed, a shorter one extended, a missing file drawn
    again. Another data set, version or size that this function wrote there is replaced. Of several processes that want
    the same folder one draws, and the others wait for it.

    count: null takes all of `scenes.count`. workers: processes; null takes one for each core.
    Raises InputError where `root` holds a data set that this function did not write.
    """
    root = Path(root)
    count = scenes.count if count is None else count
    wanted = {"name": scenes.name, "version": scenes.version, "size": size}
    listing, stamp = root / "prompt.json", root / "generated.json"
    folders = [root / "source", root / "target"]
    if _is_complete(root, wanted, count):
        return root  # without a lock: the folder may be read-only
    if not stamp.exists() and (listing.exists() or any(f.is_dir() and any(f.iterdir()) for f in folders)):
        raise InputError(
            f"data.root={root}: holds a data set that was not generated here (no generated.json beside its files);"
            " choose another folder for the generated one, or delete this one"
        )
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        if not _is_complete(root, wanted, count):  # another process may have drawn it meanwhile
            _complete(scenes, root, wanted, count, workers)
    return root


def _is_complete(root: Path, wanted: dict[str, Any], count: int) -> bool:
    """Whether `root` holds the first `count` items of what is wanted."""
    found = _read_stamp(root / "generated.json")
    if {key: found.get(key) for key in wanted} != wanted or not (root / "prompt.json").exists():
        return False
    return found.get("count", 0) >= count and not _missing([root / "source", root / "target"], count)


def _complete(scenes: Scenes, root: Path, wanted: dict[str, Any], count: int, workers: int | None) -> None:
    """Draw what is missing of the first `count` items and list them, with this process alone at `root`."""
    listing, stamp = root / "prompt.json", root / "generated.json"
    folders = [root / "source", root / "target"]
    found = _read_stamp(stamp)
    _sweep([root, *folders])
    if {key: found.get(key) for key in wanted} != wanted:
        # The listing goes first and the stamp changes last: stopped anywhere between, the old items are still not
        # taken for the new ones.
        listing.unlink(missing_ok=True)
        for folder in folders:
            for old in folder.glob("*.png"):
                old.unlink()
        _write(stamp, json.dumps(wanted | {"count": 0}).encode())
        found = {}
    count = max(count, found.get("count", 0))  # a run that wants fewer leaves the others theirs
    missing = _missing(folders, count)
    known = _read_prompts(listing)
    todo = sorted(missing | set(range(count)).difference(known))
    prompts = known | _draw_all(scenes, root, wanted["size"], todo, missing, workers)
    items = ({"source": f"source/{i}.png", "target": f"target/{i}.png", "prompt": prompts[i]} for i in range(count))
    # In bytes, so that a line ends the same way on Windows.
    _write(listing, "".join(json.dumps(item) + "\n" for item in items).encode())
    _write(stamp, json.dumps(wanted | {"count": count}).encode())


def _draw_all(
    scenes: Scenes, root: Path, size: int, todo: list[int], missing: set[int], workers: int | None
) -> dict[int, str]:
    """Draw the missing items and return the captions of all in `todo`, in parallel where there is enough to do."""
    chunks = [todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK)]
    tasks = [(scenes, root, size, chunk, missing.intersection(chunk)) for chunk in chunks]
    workers = min(workers or _cores(), len(chunks))
    prompts: dict[int, str] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task(f"drawing {scenes.name} at {size} px", total=len(todo))
        if workers <= 1 or len(chunks) <= 2:  # a few items are not worth the start of a process
            for task in tasks:
                prompts |= _draw_chunk(*task)
                progress.advance(bar, len(task[3]))
        else:
            # spawn everywhere: a fork of a process in which torch has started threads can hang.
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                running = {pool.submit(_draw_chunk, *task): task[3] for task in tasks}
                try:
                    for done in as_completed(running):
                        prompts |= done.result()
                        progress.advance(bar, len(running[done]))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    return prompts


def _draw_chunk(scenes: Scenes, root: Path, size: int, chunk: list[int], missing: set[int]) -> dict[int, str]:
    """Write the missing items of a chunk; return the captions of all of it."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes are the parallelism
    prompts = {}
    try:
        for index in chunk:
            if index not in missing:
                prompts[index] = scenes.prompt(index)
                continue
            pair = scenes.draw(index, size)
            _write(root / "source" / f"{index}.png", _png(pair.source))
            _write(root / "target" / f"{index}.png", _png(pair.target))
            prompts[index] = pair.prompt
    finally:
        cv2.setNumThreads(threads)
    return prompts


def _png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode an RGB image; cv2.imencode, not imwrite, because the latter fails on non-ASCII paths on Windows."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 2])
    if not ok:
        raise RuntimeError(f"cv2 could not encode an image of shape {image.shape} as PNG")
    return data.tobytes()


def _write(path: Path, data: bytes) -> None:
    """Write `path` so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _missing(folders: list[Path], count: int) -> set[int]:
    """The items of which an image is absent or empty."""
    there = set(range(count))
    for folder in folders:
        with os.scandir(folder) as entries:
            images = [entry.name[:-4] for entry in entries if entry.name.endswith(".png") and entry.stat().st_size]
        there &= {int(name) for name in images if name.isdecimal()}
    return set(range(count)) - there


def _read_prompts(listing: Path) -> dict[int, str]:
    """The captions that an earlier, shorter or damaged generation of the same items left; {} where there is none."""
    try:
        return {i: json.loads(line)["prompt"] for i, line in enumerate(listing.read_text("utf-8").splitlines())}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _sweep(folders: list[Path]) -> None:
    """Delete what a killed process left half written."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if time.time() - path.stat().st_mtime > STRAY:
                path.unlink(missing_ok=True)


def _read_stamp(path: Path) -> dict:
    """What the folder says of itself; {} where it says nothing readable."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
