"""Latents and prompt embeddings: computed once, kept under the content that they were made of, read row by row."""

import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import rich
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from cnx.data.ahead import map_ahead, progress
from cnx.data.folder import BEHIND_TARGET, Item, fit, load_image
from cnx.data.items import key
from cnx.errors import InputError

if TYPE_CHECKING:
    from cnx.base import Base

Cached = Literal["off", "latents", "all"]

IMAGES_AT_ONCE = 16
PROMPTS_AT_ONCE = 64
ENTRY = np.dtype([("digest", "V32"), ("checksum", "<u4")])  # sha256 of what a row was made of, CRC-32 of the row


class Rows:
    """Rows of float16 in a folder, each under a digest of what it was made of. Rows are added and never changed.

    `rows.bin` holds the rows, `entries.bin` an `ENTRY` for each, written after it: a row without an entry does not
    count, so whatever stops a process leaves whole rows behind. Pickles as its path, so that a worker process maps
    the files instead of receiving a copy.

    float16 has a relative error of 2^-11, far below what 8-bit pixels leave of a latent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shape: tuple[int, ...] | None = None
        self._map()

    def __reduce__(self) -> tuple[type["Rows"], tuple[Path]]:
        return Rows, (self.folder,)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int | Sequence[int]) -> Float[Tensor, "..."]:
        """Read one row, or several rows stacked, as float32. Raises InputError for a row that has been damaged."""
        if isinstance(index, int):
            return self[[index]][0]
        found = self._rows[index]
        for at, row in zip(index, found, strict=True):
            if zlib.crc32(row.tobytes()) != self._entries["checksum"][at]:
                raise InputError(
                    f"{self.folder / 'rows.bin'}: row {at} is damaged (its checksum is wrong);"
                    f" delete the folder {self.folder}, to have it made again"
                )
        return torch.from_numpy(found.astype(np.float32))

    def find(self, digests: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The row of each digest (32 bytes); -1 where there is none."""
        if not len(self):
            return np.full(len(digests), -1)
        known = _first_word(self._entries["digest"])
        order = np.argsort(known, kind="stable")
        place = np.searchsorted(known[order], _first_word(digests), side="right") - 1
        rows = order[place.clip(0)]
        return np.where(self._entries["digest"][rows] == digests, rows, -1)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that adds rows, and know all rows that the others have added."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=2)
        except Timeout:
            rich.get_console().print(f"Waiting for another process, which fills {self.folder}", highlight=False)
            lock.acquire()
        try:
            self._map()
            yield
        finally:
            lock.release()

    def add(self, digests: Shaped[np.ndarray, " b"], rows: Float[np.ndarray, "b ..."], what: str) -> None:
        """Add float16 rows, within `locked`. Raises InputError for numbers that float16 does not hold."""
        if not np.isfinite(rows).all():
            raise InputError(f"{what} are not finite in half precision; load the base in float32")
        if self.shape is None:
            self.shape = rows.shape[1:]
            part = self.folder / "shape.json.part"
            _write_at(part, 0, json.dumps(self.shape).encode())
            part.replace(self.folder / "shape.json")  # whole or not at all, for who looks without the lock
        entries = np.zeros(len(rows), dtype=ENTRY)
        entries["digest"] = digests
        entries["checksum"] = [zlib.crc32(row.tobytes()) for row in rows]
        # Written as files, since a full disk kills a process that writes to a memory map.
        _write_at(self.folder / "rows.bin", self._count * self.row_bytes, rows.tobytes())
        _write_at(self.folder / "entries.bin", self._count * ENTRY.itemsize, entries.tobytes())
        self._count += len(rows)

    def refresh(self) -> None:
        """Make rows readable that have been added."""
        self._map()

    @property
    def row_bytes(self) -> int:
        assert self.shape is not None
        return 2 * math.prod(self.shape)

    def _map(self) -> None:
        rows, entries = self.folder / "rows.bin", self.folder / "entries.bin"
        shape_file = self.folder / "shape.json"
        if self.shape is None and shape_file.is_file():  # by now: another process may have made the folder
            self.shape = tuple(json.loads(shape_file.read_text()))
        count = 0
        if self.shape is not None and rows.is_file() and entries.is_file():
            count = min(rows.stat().st_size // self.row_bytes, entries.stat().st_size // ENTRY.itemsize)
        shape = self.shape or ()
        self._count = count
        self._rows = np.memmap(rows, "<f2", "r", shape=(count, *shape)) if count else np.empty((0, *shape), np.float16)
        self._entries = np.memmap(entries, ENTRY, "r", shape=count) if count else np.empty(0, ENTRY)


def cache_latents(
    base: "Base",
    items: Sequence[Item],
    targets: Shaped[np.ndarray, " n"],
    size: tuple[int, int],
    folder: Path,
) -> tuple[Rows, Int[np.ndarray, " n"]]:
    """Encode the targets of all items that no earlier run has encoded with an equal VAE at this size.

    The VAE sees IMAGES_AT_ONCE pictures at a time, filled up by repetition, because its result depends on their number
    in the last bits: so a row is a function of its target, whatever was in the cache before. What is left over at the
    end of the items goes by itself, under the digest of all of it: as it was before rows had digests of their own.

    Args:
        targets: the sha256 of each item's target file, 32 bytes.
        size: height and width in pixels, multiples of 8.

    Returns:
        Rows "4 h/8 w/8", and the row of each item.

    Raises:
        InputError: an unreadable image, latents that do not fit into float16, a disk without room for them.
    """
    height, width = size
    shape = (4, height // 8, width // 8)
    parts = ("latents", base.fingerprint("vae"), str(base.dtype), str(height), str(width))
    rows = Rows(folder / f"latents-{width}x{height}-{key(parts)}")
    count = len(items) // IMAGES_AT_ONCE * IMAGES_AT_ONCE
    digests = np.array(targets)
    rest = digests[count:].tobytes()
    for at in range(count, len(items)):
        digests[at] = np.void(hashlib.sha256(rest + bytes([at - count])).digest())

    def load(at: int) -> UInt8[np.ndarray, "h w 3"]:
        return fit(load_image(items[at].target, BEHIND_TARGET), height, width)

    with _filling(rows, digests, shape, "pictures") as missing:
        full = [at for at in missing if at < count]
        chunks = [full[start : start + IMAGES_AT_ONCE] for start in range(0, len(full), IMAGES_AT_ONCE)]
        if missing and missing[-1] >= count:
            chunks.append(list(range(count, len(items))))
        pictures = map_ahead(load, (at for chunk in chunks for at in chunk), ahead=2 * IMAGES_AT_ONCE)
        with progress("Encoding pictures", sum(map(len, chunks))) as advance:
            for chunk in chunks:
                loaded = [next(pictures) for _ in chunk]
                if chunk[0] < count:
                    loaded = (loaded * IMAGES_AT_ONCE)[:IMAGES_AT_ONCE]
                images = torch.from_numpy(np.stack(loaded)).permute(0, 3, 1, 2)  # a channels_last tensor without a copy
                latents = _halve(base.encode_images(images.to(base.device, base.dtype) / 255))[: len(chunk)]
                rows.add(digests[chunk], latents, f"the VAE's latents of {items[chunk[0]].target} or the next images")
                advance(len(chunk))
    return rows, rows.find(digests)


def cache_text(
    base: "Base", prompt_at: Callable[[int], str], digests: Shaped[np.ndarray, " n"], folder: Path
) -> tuple[Rows, Int[np.ndarray, " n"], int]:
    """Embed each distinct prompt, and the empty one, that no earlier run has embedded with an equal text encoder.

    Args:
        prompt_at: gives prompt number `at`.
        digests: the sha256 of each prompt, 32 bytes.

    Returns:
        The embeddings, rows "n d"; the row of each prompt; the row of the empty prompt.
    """
    parts = ("text", base.fingerprint("text_encoder"), str(base.dtype))
    rows = Rows(folder / f"text-{key(parts)}")
    digests = np.append(digests, np.array([hashlib.sha256(b"").digest()], dtype="V32"))
    shape = rows.shape or tuple(_embed(base, [""]).shape[1:])
    with _filling(rows, digests, shape, "prompts") as missing, progress("Embedding prompts", len(missing)) as advance:
        for start in range(0, len(missing), PROMPTS_AT_ONCE):
            chunk = missing[start : start + PROMPTS_AT_ONCE]
            prompts = ["" if at == len(digests) - 1 else prompt_at(at) for at in chunk]
            # Filled up for the same reason as pictures are.
            embedded = _embed(base, prompts + [""] * (PROMPTS_AT_ONCE - len(prompts)))[: len(prompts)]
            rows.add(digests[chunk], embedded, f"the embedding of {prompts[0]!r} or of the next prompts")
            advance(len(chunk))
    found = rows.find(digests)
    return rows, found[:-1], int(found[-1])


@contextmanager
def _filling(rows: Rows, digests: Shaped[np.ndarray, " n"], shape: tuple[int, ...], of: str) -> Iterator[list[int]]:
    """Yield where the digests that have no row first occur, with this process alone at the rows; say what they take."""
    if not _missing(rows, digests):
        yield []
        return
    with rows.locked(), torch.inference_mode():
        missing = _missing(rows, digests)
        size = len(missing) * (2 * math.prod(shape) + ENTRY.itemsize)
        room = shutil.disk_usage(rows.folder).free
        if size > room:
            raise InputError(
                f"{rows.folder}: no room for {len(missing):,} {of} ({_in_words(size)}; {_in_words(room)} are free); set"
                " data.cache_folder to another disk, or data.cache=latents (no prompts) or off"
            )
        if missing:
            rich.get_console().print(
                f"Encoding {len(missing):,} {of} into {rows.folder}: {_in_words(size)}", highlight=False, soft_wrap=True
            )
        yield missing
    rows.refresh()


def _missing(rows: Rows, digests: Shaped[np.ndarray, " n"]) -> list[int]:
    without = np.flatnonzero(rows.find(digests) < 0)
    _, first = np.unique(_first_word(digests[without]), return_index=True)
    return np.sort(without[first]).tolist()


def _in_words(size: int) -> str:
    unit, name = next((2**n, name) for n, name in ((30, "GiB"), (20, "MiB"), (0, "bytes")) if size >= 2**n or not n)
    return f"{size:,} bytes" if unit == 1 else f"{size / unit:,.1f} {name}"


def _first_word(digests: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    return np.ascontiguousarray(digests).view("<u8").reshape(-1, 4)[:, 0]


def _embed(base: "Base", prompts: list[str]) -> Float[np.ndarray, "b n d"]:
    with torch.inference_mode():
        return _halve(base.encode_text(prompts))


def _halve(tensor: Float[Tensor, "..."]) -> Float[np.ndarray, "..."]:
    with np.errstate(over="ignore"):  # `Rows.add` reports what does not fit
        return tensor.float().cpu().numpy().astype(np.float16)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write `data` at `offset`, over what an interrupted process may have left there, and end the file after it."""
    path.touch()
    try:
        with path.open("r+b") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); make room, or set data.cache_folder") from None
