"""What a reader gives: the items of a data set by number, in memory that does not grow with their count."""

import hashlib
import os
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from jaxtyping import Int, UInt64

from cnx.data.folder import Item, OnError, list_folder

AT_ONCE = 1 << 16  # items of a table whose places are held in memory


class Items(Sequence[Item]):
    """The items of a data set, by number.

    Attributes:
        identity: changes with what is listed, and with nothing else; the index of the items is kept under it.
        shards: the shard that each item lies in; None where items are files of their own.
    """

    identity: str
    shards: Int[np.ndarray, " n"] | None = None

    @abstractmethod
    def item(self, at: int) -> Item:
        """Item number `at`, from 0."""

    def stamps(self) -> UInt64[np.ndarray, " n"]:
        """A number for each item that changes when its files do; zeros where `identity` follows their content."""
        return np.zeros(len(self), dtype=np.uint64)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> "Chosen": ...
    def __getitem__(self, at: int | slice) -> "Item | Chosen":
        if isinstance(at, slice):
            return Chosen(self, np.arange(len(self))[at])
        if not -len(self) <= at < len(self):
            raise IndexError(at)  # ends a `for`
        return self.item(int(at) % len(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Item.__eq__, self, other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class Chosen(Items):
    """Some of the items of another sequence, by their numbers there."""

    def __init__(self, items: Items, numbers: Int[np.ndarray, " n"]) -> None:
        self.items, self.numbers, self.identity = items, numbers, items.identity

    def __len__(self) -> int:
        return len(self.numbers)

    def item(self, at: int) -> Item:
        return self.items[int(self.numbers[at])]


class Reader(Protocol):
    """Reads a data set in one format. An option of the configuration: `data.reader`."""

    def __call__(self, root: str, limit: int | None, on_error: OnError, cache: Path) -> Items:
        """List the first `limit` items (None: all) of the data set at `root`.

        on_error: `skip` keeps an item of which something is missing, for the caller to count. cache: a folder for what
        is to be found there by the next run. Raises InputError for what is no data set of this format.
        """
        ...


class Listed(Items):
    """Items whose images are files in folders; paths and prompts are in a table on disk, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.identity = folder, folder.name
        self._ends = np.load(folder / "ends.npy", mmap_mode="r")
        self._text = np.memmap(folder / "text.bin", dtype=np.uint8, mode="r")

    def __reduce__(self) -> tuple[type["Listed"], tuple[Path]]:
        return Listed, (self.folder,)

    @classmethod
    def of(cls, items: Iterable[Item], *parts: str, cache: Path) -> "Listed":
        """The table of `items` under the key of `parts`, which the items follow from, written if it is not there."""
        home = cache / f"items-{key(parts)}"
        if not home.is_dir():
            with whole(home) as partial:
                ends, end = [], 0
                with (partial / "text.bin").open("wb") as file:
                    for item in items:
                        for text in (str(item.source), str(item.target), item.prompt):
                            # A lone surrogate, as JSON allows and as a file name may have, is kept.
                            end += file.write(text.encode("utf-8", "surrogatepass"))
                            ends.append(end)
                        if len(ends) >= 3 * AT_ONCE:
                            _append(partial / "ends.bin", ends)
                            ends.clear()
                _append(partial / "ends.bin", ends)
                flat = np.memmap(partial / "ends.bin", dtype=np.uint64, mode="r")
                np.save(partial / "ends.npy", flat.reshape(-1, 3))
                del flat
                (partial / "ends.bin").unlink()
        return cls(home)

    def __len__(self) -> int:
        return len(self._ends)

    def item(self, at: int) -> Item:
        source, target, prompt = self._texts(at)
        return Item(Path(source), Path(target), prompt)

    def stamps(self) -> UInt64[np.ndarray, " n"]:
        found = np.empty(len(self), dtype=np.uint64)
        begin = 0
        for start in range(0, len(self), AT_ONCE):
            ends = self._ends[start : start + AT_ONCE].tolist()
            origin, text = begin, self._text[begin : ends[-1][2]].tobytes()
            for at, (one, two, end) in enumerate(ends, start):
                source, target = text[begin - origin : one - origin], text[one - origin : two - origin]
                # A hash of integers: the same in every process.
                found[at] = hash((*_stat(_decoded(source)), *_stat(_decoded(target)))) % 2**64
                begin = end
        return found

    def _texts(self, at: int) -> tuple[str, str, str]:
        begin = int(self._ends[at - 1, 2]) if at else 0
        one, two, end = (int(position) for position in self._ends[at])
        text = self._text[begin:end].tobytes()
        parts = text[: one - begin], text[one - begin : two - begin], text[two - begin :]
        source, target, prompt = map(_decoded, parts)
        return source, target, prompt


class Fill50KLayout:
    """A folder with prompt.json, as `list_folder` reads it."""

    def __call__(self, root: str, limit: int | None, on_error: OnError, cache: Path) -> Items:
        listing = Path(root) / "prompt.json"
        content = file_hash(listing) if listing.is_file() else ""
        items = list_folder(root, limit, on_error)
        return Listed.of(items, "fill50k", str(Path(root).resolve()), root, content, str(limit), cache=cache)


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


def _append(path: Path, ends: list[int]) -> None:
    with path.open("ab") as file:
        file.write(np.array(ends, dtype=np.uint64).tobytes())


def _stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(parts: Iterable[str]) -> str:
    """sha256 of parts, each preceded by its length, so that no two lists of parts give the same bytes."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:32]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` which takes that name if the block ends well and is removed if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield partial
        try:
            os.replace(partial, path)
        except OSError:
            if not path.is_dir():
                raise
            # Another process has finished the same content first: its result is as good.
    finally:
        shutil.rmtree(partial, ignore_errors=True)
