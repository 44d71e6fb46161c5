"""The index of a data set: what was found out about each item by reading it whole, once."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from jaxtyping import Bool, Float, Shaped

from cnx.data.ahead import map_ahead, progress
from cnx.data.folder import BEHIND_MAP, BEHIND_TARGET, OR_SKIP, Item, check_sizes, decode, read_file
from cnx.data.items import Items
from cnx.errors import InputError

# 113 bytes an item. Digests are sha256: `item` of source, target and prompt, `target` of its file alone.
RECORD = np.dtype(
    [
        ("state", "u1"),
        ("stamp", "<u8"),
        ("item", "V32"),
        ("target", "V32"),
        ("prompt", "V32"),
        ("width", "<u4"),
        ("height", "<u4"),
    ]
)
GOOD, BAD = 1, 2  # 0 is a gap. What is bad is read again each time: it may have been mended
AT_ONCE = 64


def index_items(items: Items, cache: Path, stop_at_bad: bool) -> Shaped[np.ndarray, " n"]:
    """Read what is not in the index of `items` yet, or has changed since, and give the index: `RECORD`s, mapped.

    Reading goes on where an interrupted run has stopped. Of several processes one reads, and the others wait for it.

    Raises:
        InputError: an item that cannot be read, if `stop_at_bad`.
    """
    file = cache / f"index-{items.identity}.bin"
    stamps = items.stamps()
    if len(_unread(_read(file), stamps)):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            todo = _unread(_read(file), stamps)  # another process may have read them meanwhile
            file.touch()
            with file.open("r+b") as writable, progress("Reading the data set", len(todo)) as advance:
                found = map_ahead(lambda at: (at, inspect(items[at])), todo.tolist(), ahead=AT_ONCE)
                for at, record in found:
                    record["stamp"] = stamps[at]
                    writable.seek(at * RECORD.itemsize)
                    writable.write(record.tobytes())
                    advance(1)
                    if stop_at_bad and record["state"] == BAD:
                        break
    records = _read(file)[: len(items)]
    if stop_at_bad and (bad := np.flatnonzero(records["state"] == BAD)).size:
        raise InputError(why_bad(items[int(bad[0])]) + OR_SKIP)
    return records


def inspect(item: Item) -> Shaped[np.ndarray, ""]:
    """Read an item whole: its digests and its size in pixels, or `BAD`."""
    record = np.zeros((), dtype=RECORD)
    try:
        source, target = read_file(item.source), read_file(item.target)
        control, picture = decode(item.source, source, BEHIND_MAP), decode(item.target, target, BEHIND_TARGET)
        check_sizes(item, control, picture)
    except InputError:
        record["state"] = BAD
        return record
    prompt = item.prompt.encode("utf-8", "replace")
    files = hashlib.sha256(source).digest() + hashlib.sha256(target).digest()
    record["item"] = hashlib.sha256(files + prompt).digest()
    record["target"] = files[32:]
    record["prompt"] = hashlib.sha256(prompt).digest()
    record["height"], record["width"] = picture.shape[:2]
    record["state"] = GOOD
    return record


def why_bad(item: Item) -> str:
    """Why an item that the index calls bad cannot be read."""
    try:
        for file, behind in ((item.source, BEHIND_MAP), (item.target, BEHIND_TARGET)):
            decode(file, read_file(file), behind)
        check_sizes(item, *(decode(file, read_file(file)) for file in (item.source, item.target)))
    except InputError as error:
        return str(error)
    return f"{item.source} or {item.target}: could not be read at first, and can now; start again"


def positions(targets: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """`cnx.data.split.position` of many digests of 32 bytes."""
    first = np.ascontiguousarray(targets).view(">u8").reshape(len(targets), 4)[:, 0]
    return (first >> np.uint64(64 - 53)).astype(np.float64) / 2**53


def content(records: Shaped[np.ndarray, " n"]) -> str:
    """sha256 of the data set: of the hex digests of its items, one after another."""
    digest = hashlib.sha256()
    for start in range(0, len(records), 1 << 16):
        digest.update(records["item"][start : start + (1 << 16)].tobytes().hex().encode())
    return digest.hexdigest()


def sorted_by_content(records: Shaped[np.ndarray, " n"], chosen: Sequence[int] | Shaped[np.ndarray, " m"]) -> list[int]:
    """The numbers of some items in the order of their targets' digests, then of their own."""
    return sorted(map(int, chosen), key=lambda at: (bytes(records["target"][at]), bytes(records["item"][at]), at))


def _read(file: Path) -> Shaped[np.ndarray, " n"]:
    count = file.stat().st_size // RECORD.itemsize if file.is_file() else 0
    return np.memmap(file, dtype=RECORD, mode="r", shape=count) if count else np.empty(0, dtype=RECORD)


def _unread(records: Shaped[np.ndarray, " n"], stamps: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " m"]:
    known: Bool[np.ndarray, " n"] = np.zeros(len(stamps), dtype=bool)
    records = records[: len(stamps)]
    known[: len(records)] = (records["state"] == GOOD) & (records["stamp"] == stamps[: len(records)])
    return np.flatnonzero(~known)
