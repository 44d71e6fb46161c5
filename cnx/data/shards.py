"""WebDataset shards: tar files whose members `x.image.jpg`, `x.control.png` and `x.prompt.txt` are item x."""

import contextlib
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
from filelock import FileLock

from cnx.data.ahead import map_ahead, progress
from cnx.data.folder import OR_SKIP, Item, OnError, check_limit, read_file
from cnx.data.items import Items, key, whole
from cnx.errors import InputError

# Where the three files of an item lie: control map, picture, prompt. A length of 0 where one is missing.
PLACE = np.dtype([("shard", "<u4"), ("offset", "<u8", (3,)), ("length", "<u8", (3,))])
HEADER = 512  # bytes before each member of a tar file: its name comes first


@dataclass(frozen=True)
class Member:
    """A file in a shard."""

    shard: Path
    offset: int
    length: int

    @property
    def name(self) -> str:
        with self.shard.open("rb") as file:
            file.seek(self.offset - HEADER)
            return file.read(100).rstrip(b"\0").decode("utf-8", "replace")

    def __str__(self) -> str:
        return f"{self.shard}, {self.name}" if self.length else f"{self.shard}: an item's file"

    def read_bytes(self) -> bytes:
        if not self.length:
            raise FileNotFoundError(self.shard)
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


@dataclass(frozen=True)
class Shards:
    """Reads shards: a folder of .tar files, or a pattern of paths or URLs, as shards/{000..012}.tar or https://....

    Shards behind URLs are fetched into the cache once, by whatever fsspec can read.

    Attributes:
        image, control, prompt: what the members of an item are called, after the item's name and before the last dot.
    """

    image: str = "image"
    control: str = "control"
    prompt: str = "prompt"

    def __call__(self, root: str, limit: int | None, on_error: OnError, cache: Path) -> Items:
        check_limit(limit)
        shards = [_fetched(place, cache) if "://" in place else Path(place) for place in expand(root)]
        for shard in shards:
            if not shard.is_file():
                raise InputError(f"{shard}: no such shard; set data.root to a folder of .tar files or to a pattern")
        facts = [f"{shard.resolve()} {shard.stat().st_size} {shard.stat().st_mtime_ns}" for shard in shards]
        home = cache / f"items-{key(('shards', repr(self), str(limit), on_error, *facts))}"
        if not home.is_dir():
            with whole(home) as partial:
                places = np.concatenate(list(self._list(shards, limit, on_error)))[:limit]
                if not len(places):
                    raise InputError(f"{root}: no items; expected {self._expected('x')}")
                np.save(partial / "places.npy", places)
        return Members(home, shards)

    def _list(self, shards: list[Path], limit: int | None, on_error: OnError) -> Iterator[np.ndarray]:
        count = 0
        with progress("Listing shards", len(shards)) as advance:
            numbered = list(enumerate(shards))
            for part in map_ahead(lambda each: self._list_shard(*each, on_error), numbered, ahead=4):
                yield part
                advance(1)
                count += len(part)
                if limit is not None and count >= limit:
                    return

    def _list_shard(self, number: int, shard: Path, on_error: OnError) -> np.ndarray:
        names = (self.control, self.image, self.prompt)
        found: dict[str, np.ndarray] = {}
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    folder, _, file = member.name.rpartition("/")
                    item, _, ending = file.partition(".")
                    kind = ending.rpartition(".")[0] or ending
                    if member.isfile() and kind in names:
                        place = found.setdefault(f"{folder}/{item}", np.zeros((), dtype=PLACE))
                        place["shard"] = number
                        place["offset"][names.index(kind)] = member.offset_data
                        place["length"][names.index(kind)] = member.size
        except tarfile.TarError as error:
            raise InputError(f"{shard}: not a whole tar file ({error}); fetch or make it again, uncompressed") from None
        for item, place in found.items():
            missing = [name for name, length in zip(names[:2], place["length"], strict=False) if not length]
            if missing and on_error == "raise":
                what = f"item {item.lstrip('/')} has no {missing[0]}; expected {self._expected(item)}"
                raise InputError(f"{shard}: {what}{OR_SKIP}")
        return np.array(list(found.values()), dtype=PLACE)

    def _expected(self, item: str) -> str:
        item = item.lstrip("/")
        return f"members {item}.{self.image}.jpg, {item}.{self.control}.png, {item}.{self.prompt}.txt"


class Members(Items):
    """The items of shards; where their files lie is in a table on disk, mapped into memory."""

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        self.folder, self.paths, self.identity = folder, paths, folder.name
        self._places = np.load(folder / "places.npy", mmap_mode="r")
        self.shards = self._places["shard"]

    def __reduce__(self) -> tuple[type["Members"], tuple[Path, list[Path]]]:
        return Members, (self.folder, self.paths)

    def __len__(self) -> int:
        return len(self._places)

    def item(self, at: int) -> Item:
        place = self._places[at]
        shard = self.paths[int(place["shard"])]
        files = zip(place["offset"].tolist(), place["length"].tolist(), strict=True)
        source, target, text = (Member(shard, offset, length) for offset, length in files)
        prompt = read_file(text).decode("utf-8-sig", "replace").strip() if text.length else ""
        return Item(source, target, prompt)


def expand(pattern: str) -> list[str]:
    """The paths or URLs that a pattern stands for: a folder's .tar files, or the values of {a..b} and {a,b} in it."""
    if Path(pattern).is_dir():
        found = sorted(str(path) for path in Path(pattern).glob("*.tar"))
        if not found:
            raise InputError(f"{pattern}: no .tar files in that folder")
        return found
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise InputError('data=shards needs the library webdataset: pip install -e ".[shards]"') from None
    return expand_urls(pattern)


def _fetched(url: str, cache: Path) -> Path:
    """A shard's copy in the cache, fetched if it is not there; several processes fetch it once."""
    file = cache / "shards" / f"{key([url])}-{Path(url.partition('?')[0]).name}"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                part = file.with_name(f"{file.name}.part")
                try:
                    with fsspec.open(url, "rb") as distant, part.open("wb") as near:
                        while data := distant.read(1 << 20):  # pyright: ignore[reportAttributeAccessIssue]
                            near.write(data)
                except Exception as error:  # each file system of fsspec raises its own kinds
                    reason = " ".join(str(error).split())[:200] or type(error).__name__
                    raise InputError(f"{url}: cannot be fetched ({reason})") from error
                os.replace(part, file)
    return file


def write_shards(items: Iterable[Item], folder: Path, items_a_shard: int = 1000) -> list[Path]:
    """Write items to new shards 000000.tar, 000001.tar, ... in `folder`, their files' bytes as they are.

    A shard has its name when it is whole. The same items give the same bytes. Raises InputError for a file that cannot
    be read, and where there are shards already.
    """
    try:
        from webdataset.writer import TarWriter
    except ImportError:
        raise InputError('writing shards needs the library webdataset: pip install -e ".[shards]"') from None
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.tar")):
        raise InputError(f"{folder}: holds shards already; choose another folder, or delete them")
    written = []
    for shard, chunk in itertools.groupby(enumerate(items), lambda numbered: numbered[0] // items_a_shard):
        path = folder / f"{shard:06d}.tar"
        part = path.with_name(f"{path.name}.part")
        # Bytes as they are, without the time and the user.
        with part.open("wb") as file, contextlib.closing(TarWriter(file, encoder=False, mtime=0)) as tar:
            for at, item in chunk:
                files = {"control": item.source, "image": item.target}
                members = {f"{name}{Path(file.name).suffix.lower()}": read_file(file) for name, file in files.items()}
                tar.write({"__key__": f"{at:09d}", **members, "prompt.txt": item.prompt.encode()})
        os.replace(part, path)
        written.append(path)
    return written
