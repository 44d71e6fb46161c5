"""Latents and prompt embeddings: computed once, stored under a key of their content, read row by row."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from cnx.data.folder import OR_SKIP, Item, OnError, check_resolution, load_pair
from cnx.data.split import Digest
from cnx.errors import InputError

if TYPE_CHECKING:
    from cnx.base import Base

IMAGES_AT_ONCE = 16
PROMPTS_AT_ONCE = 64


class Rows:
    """An array on disk whose rows are read when they are asked for.

    Stored as float16: a relative error of 2^-11, far below what 8-bit pixels leave of a latent. Pickles as its path,
    so that a worker process maps the file instead of receiving a copy.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = np.load(path, mmap_mode="r")

    def __reduce__(self) -> tuple[type["Rows"], tuple[Path]]:
        return Rows, (self.path,)

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int | Sequence[int]) -> Float[Tensor, "..."]:
        """Read one row, or several rows stacked, as float32."""
        return torch.from_numpy(self._array[index].astype(np.float32))


def cache_latents(
    base: "Base",
    items: Sequence[Item],
    digests: Sequence[Digest],
    resolution: int,
    folder: str | Path,
    on_error: OnError = "raise",
) -> tuple[Rows, dict[int, str]]:
    """Encode the targets of all items, or find them encoded by an earlier run with equal VAE, content and resolution.

    Control maps are decoded too, so that a damaged one is found here and not in the middle of training.

    Args:
        digests: the content of each item, in the same order.
        resolution: side in pixels, a multiple of 8.
        folder: the cache; each result is a folder in it, which appears under its name only when it is complete.
        on_error: with `skip`, items that cannot be read get a row of zeros.

    Returns:
        The latents, one row "4 h/8 w/8" per item, and why skipped items were skipped, by their position in `items`.

    Raises:
        InputError: an unreadable pair of images, when `on_error` is `raise`; latents that do not fit into float16.
    """
    check_resolution(resolution)
    parts = ("latents", base.fingerprint("vae"), str(base.dtype), str(resolution), *(d.item for d in digests))
    home = Path(folder) / f"latents-{_key(parts)}"
    if not home.is_dir():
        with _whole(home) as partial:
            shape = (len(items), 4, resolution // 8, resolution // 8)
            skipped = []
            with _new_rows(partial, shape) as file, _progress("Encoding images", len(items)) as advance:
                for chunk in _load_ahead(items, resolution):
                    bad = [index for index, pair in chunk if isinstance(pair, InputError)]
                    if bad and on_error == "raise":
                        raise InputError(_reason(items[bad[0]], resolution) + OR_SKIP)
                    targets = [pair for _, pair in chunk if not isinstance(pair, InputError)]
                    rows = np.zeros((len(chunk), *shape[1:]), dtype=np.float16)
                    rows[[index not in bad for index, _ in chunk]] = _encode(base, targets)
                    _write_rows(file, rows, f"the VAE's latents of {items[chunk[0][0]].target} or the next images")
                    skipped += bad
                    advance(len(chunk))
            (partial / "skipped.json").write_text(json.dumps(skipped))
    # Only positions are stored: the key is content, so the same files may lie elsewhere by now.
    skipped = {index: _reason(items[index], resolution) for index in json.loads((home / "skipped.json").read_text())}
    if skipped and on_error == "raise":
        raise InputError(next(iter(skipped.values())) + OR_SKIP)
    return Rows(home / "rows.npy"), skipped


def cache_text(base: "Base", prompts: Iterable[str], folder: str | Path) -> tuple[Rows, dict[str, int]]:
    """Embed each distinct prompt and the empty one, or find them embedded by an earlier run with equal text encoder.

    Returns:
        The embeddings "n d", one row per distinct prompt, and the row of each prompt; `""` is always among them.
    """
    distinct = sorted({"", *prompts})
    parts = ("text", base.fingerprint("text_encoder"), str(base.dtype), *distinct)
    home = Path(folder) / f"text-{_key(parts)}"
    if not home.is_dir():
        with _whole(home) as partial, torch.inference_mode():
            shape = (len(distinct), *base.encode_text([""]).shape[1:])
            with _new_rows(partial, shape) as file, _progress("Embedding prompts", len(distinct)) as advance:
                for start in range(0, len(distinct), PROMPTS_AT_ONCE):
                    chunk = distinct[start : start + PROMPTS_AT_ONCE]
                    rows = _halve(base.encode_text(chunk))
                    _write_rows(file, rows, f"the embedding of {chunk[0]!r} or of the next prompts")
                    advance(len(chunk))
    return Rows(home / "rows.npy"), {prompt: row for row, prompt in enumerate(distinct)}


def _encode(base: "Base", targets: list[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "b 4 h/8 w/8"] | float:
    if not targets:
        return 0.0
    images = torch.from_numpy(np.stack(targets)).permute(0, 3, 1, 2)  # a channels_last tensor without a copy
    with torch.inference_mode():
        latents = base.encode_images(images.to(base.device, base.dtype) / 255)
    return _halve(latents)


def _halve(tensor: Float[Tensor, "..."]) -> Float[np.ndarray, "..."]:
    with np.errstate(over="ignore"):  # `_write_rows` reports what does not fit
        return tensor.float().cpu().numpy().astype(np.float16)


def _load_ahead(items: Sequence[Item], resolution: int) -> Iterator[list[tuple[int, np.ndarray | InputError]]]:
    """Yield chunks of (position, target or why it cannot be read), decoding the next chunk while one is in use."""

    def load(item: Item) -> np.ndarray | InputError:
        try:
            return load_pair(item, resolution)[1]
        except InputError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[int, Future[np.ndarray | InputError]]] = deque()
        upcoming = iter(enumerate(items))
        try:
            while True:
                while len(waiting) < 2 * IMAGES_AT_ONCE and (found := next(upcoming, None)) is not None:
                    waiting.append((found[0], pool.submit(load, found[1])))
                if not waiting:
                    return
                count = min(IMAGES_AT_ONCE, len(waiting))
                yield [(index, future.result()) for index, future in (waiting.popleft() for _ in range(count))]
        finally:
            pool.shutdown(cancel_futures=True)


def _reason(item: Item, resolution: int) -> str:
    try:
        load_pair(item, resolution)
    except InputError as error:
        return str(error)
    return f"{item.source} or {item.target}: could not be read when the cache was made; delete the cache to try again"


def _key(parts: Iterable[str]) -> str:
    """sha256 of parts, each preceded by its length, so that no two lists of parts give the same bytes."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode()
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:32]


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
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


@contextmanager
def _new_rows(folder: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """Open rows.npy for float16 rows that follow one another; written as a file, since a full disk kills a memmap."""
    with (folder / "rows.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        yield file


def _write_rows(file: BinaryIO, rows: Float[np.ndarray, "b ..."], what: str) -> None:
    if not np.isfinite(rows).all():
        raise InputError(f"{what} are not finite in half precision; load the base in float32")
    file.write(rows.tobytes())


@contextmanager
def _progress(title: str, total: int):
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not get_console().is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
