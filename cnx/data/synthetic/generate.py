"""Write a synthetic data set as a folder in the Fill50K layout, once; later calls find it there."""

import hashlib
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from filelock import FileLock
from jaxtyping import UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cnx.condition import Condition, GeometricCondition
from cnx.data.synthetic.pair import Scenes, unlike_own
from cnx.errors import InputError

CHUNK = 64  # items a process draws before it reports: about half a second
PICTURES_KNOWN_BY = 4  # of which the maps tell two annotators apart
STRAY = 60  # seconds; a younger temporary file may belong to another process that writes the same folder


@dataclass(frozen=True)
class _Folder:
    """A folder to fill: what its stamp is to say, the images that it holds, and where its targets are."""

    root: Path
    wanted: dict[str, Any]
    kinds: tuple[str, ...] = ("source", "target")
    targets: str = "target"

    @property
    def listing(self) -> Path:
        return self.root / "prompt.json"

    @property
    def stamp(self) -> Path:
        return self.root / "generated.json"

    @property
    def folders(self) -> list[Path]:
        return [self.root / kind for kind in self.kinds]


def generate(scenes: Scenes, root: Path | str, size: int, count: int | None = None, workers: int | None = None) -> Path:
    """Make `root` hold at least the first `count` items of `scenes` at `size` pixels, and return the folder to read.

    That is `root` itself for the set's own control maps. For another condition it is a folder in it, with maps of its
    own and a prompt.json that names the targets of `root`: no picture is there twice.

    What is there already is kept: an interrupted generation is completed, a shorter one extended, a missing file drawn
    again. Another data set, version or size that this function wrote there is replaced. Of several processes that want
    the same folder one draws, and the others wait for it.

    count: null takes all of `scenes.count`. workers: processes; null takes one for each core.
    Raises InputError where `root` holds a data set that this function did not write.
    """
    root = Path(root)
    count = scenes.count if count is None else count
    wanted = {"name": scenes.name, "version": scenes.version, "size": size}
    _fill(_Folder(root, wanted), scenes, count, workers, own=True)
    condition = unlike_own(scenes.condition)
    if condition is None:
        return root
    name = _maps_name(scenes, condition, size)
    maps = _Folder(root / name, wanted | {"condition": name}, kinds=("source",), targets="../target")
    _fill(maps, scenes, count, workers, own=False)
    return maps.root


def _maps_name(scenes: Scenes, condition: Condition, size: int) -> str:
    """The name of a condition's folder of maps: true maps do not depend on how a detector is set, others do.

    An annotator is known by its numbers and names, and by what it makes of the first pictures: so it is another one
    where its weights are others.
    """
    name = type(condition).__name__.lower()
    if isinstance(condition, GeometricCondition):
        return name
    settings = {key: value for key, value in vars(condition).items() if isinstance(value, str | int | float | None)}
    seen = hashlib.sha256(repr(sorted(settings.items())).encode())
    for index in range(min(PICTURES_KNOWN_BY, scenes.count)):
        seen.update(scenes.draw(index, size).source.tobytes())
    return f"{name}-{seen.hexdigest()[:8]}"


def _fill(folder: _Folder, scenes: Scenes, count: int, workers: int | None, own: bool) -> None:
    """Complete one folder, with the set's `own` maps or with those of its condition."""
    if _is_complete(folder, count):
        return  # without a lock: the folder may be read-only
    taken = folder.listing.exists() or any(f.is_dir() and any(f.iterdir()) for f in folder.folders)
    if not folder.stamp.exists() and taken:
        raise InputError(
            f"data.root={folder.root}: holds a data set that was not generated here (no generated.json beside its"
            " files); choose another folder for the generated one, or delete this one"
        )
    for kind in folder.folders:
        kind.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.root / ".lock"):
        if not _is_complete(folder, count):  # another process may have drawn it meanwhile
            drawn = replace(cast(Any, scenes), condition=None) if own else scenes
            _complete(folder, drawn, count, workers)


def _is_complete(folder: _Folder, count: int) -> bool:
    """Whether a folder holds the first `count` items of what is wanted."""
    found = _read_stamp(folder.stamp)
    if {key: found.get(key) for key in folder.wanted} != folder.wanted or not folder.listing.exists():
        return False
    return found.get("count", 0) >= count and not _missing(folder.folders, count)


def _complete(folder: _Folder, scenes: Scenes, count: int, workers: int | None) -> None:
    """Draw what is missing of the first `count` items and list them, with this process alone in the folder."""
    listing, stamp, wanted = folder.listing, folder.stamp, folder.wanted
    found = _read_stamp(stamp)
    _sweep([folder.root, *folder.folders])
    if {key: found.get(key) for key in wanted} != wanted:
        # The listing goes first and the stamp changes last: stopped anywhere between, the old items are still not
        # taken for the new ones.
        listing.unlink(missing_ok=True)
        for kind in folder.folders:
            for old in kind.glob("*.png"):
                old.unlink()
        _write(stamp, json.dumps(wanted | {"count": 0}).encode())
        found = {}
    count = max(count, found.get("count", 0))  # a run that wants fewer leaves the others theirs
    missing = _missing(folder.folders, count)
    known = _read_prompts(listing)
    todo = sorted(missing | set(range(count)).difference(known))
    prompts = known | _draw_all(scenes, folder, todo, missing, workers)
    items = (
        {"source": f"source/{i}.png", "target": f"{folder.targets}/{i}.png", "prompt": prompts[i]} for i in range(count)
    )
    # In bytes, so that a line ends the same way on Windows.
    _write(listing, "".join(json.dumps(item) + "\n" for item in items).encode())
    _write(stamp, json.dumps(wanted | {"count": count}).encode())


def _draw_all(
    scenes: Scenes, folder: _Folder, todo: list[int], missing: set[int], workers: int | None
) -> dict[int, str]:
    """Draw the missing items and return the captions of all in `todo`, in parallel where there is enough to do."""
    chunks = [todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK)]
    tasks = [(scenes, folder, chunk, missing.intersection(chunk)) for chunk in chunks]
    workers = min(workers or _cores(), len(chunks))
    prompts: dict[int, str] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    what = scenes.name if scenes.condition is None else f"{type(scenes.condition).__name__.lower()} of {scenes.name}"
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task(f"drawing {what} at {folder.wanted['size']} px", total=len(todo))
        if workers <= 1 or len(chunks) <= 2:  # a few items are not worth the start of a process
            for task in tasks:
                prompts |= _draw_chunk(*task)
                progress.advance(bar, len(task[2]))
        else:
            # spawn everywhere: a fork of a process in which torch has started threads can hang.
            with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_use_one_thread) as pool:
                running = {pool.submit(_draw_chunk, *task): task[2] for task in tasks}
                try:
                    for done in as_completed(running):
                        prompts |= done.result()
                        progress.advance(bar, len(running[done]))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    return prompts


def _use_one_thread() -> None:
    """Keep a detector's network from starting a thread a core in each process, if one is ever loaded there."""
    os.environ["OMP_NUM_THREADS"] = "1"


def _draw_chunk(scenes: Scenes, folder: _Folder, chunk: list[int], missing: set[int]) -> dict[int, str]:
    """Write the missing items of a chunk; return the captions of all of it."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes are the parallelism
    prompts = {}
    try:
        for index in chunk:
            if index not in missing:
                prompts[index] = scenes.prompt(index)
                continue
            pair = scenes.draw(index, folder.wanted["size"])
            for kind, path in zip(folder.kinds, folder.folders, strict=True):
                _write(path / f"{index}.png", _png(getattr(pair, kind)))
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
