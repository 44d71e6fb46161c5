"""One photo to its pair of files: the map in source/, the picture in target/."""

import hashlib
import io
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cnx.condition import Condition
from cnx.data.folder import BEHIND_MAP, decode, read_file, size_of
from cnx.data.prepare.photos import Photo
from cnx.data.prepare.resize import Resize
from cnx.errors import InputError

# How pictures are written. JPEG of quality 95 with colour at full resolution is a tenth of the time and a third of the
# size of a PNG (python benchmarks/prepare.py).
ENCODINGS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "png": {"format": "PNG", "compress_level": 1},
}
LARGE = 2**25  # pixels; above, one photo at a time is decoded: up to Pillow's limit it takes half a gigabyte or more
_one_large_photo = threading.Lock()


@dataclass(frozen=True)
class Pair:
    """A photo's pair of files, which have the same name but for the suffix, and their sizes in bytes."""

    name: str
    source_bytes: int
    target_bytes: int


@dataclass(frozen=True)
class Dropped:
    """Why a photo has no pair: `kind` is unreadable, tiny or duplicate."""

    kind: str
    detail: str


class OutputError(InputError):
    """The data set folder cannot be written."""


@dataclass(frozen=True)
class PairMaker:
    """Reads, resizes, annotates and writes photos.

    Attributes:
        min_side: photos with a shorter side in pixels are dropped.
        target_format: a key of ENCODINGS.
    """

    source: Path
    out: Path
    resize: Resize
    condition: Condition
    min_side: int
    target_format: str

    def __call__(self, photos: Sequence[Photo]) -> list[Pair | Dropped]:
        """Write the pair of each of a few photos, or say why there is none; they are annotated together.

        The files are named by the picture's pixels: the same picture gives the same name, whatever its file.
        Raises OutputError if they cannot be written.
        """
        pictures = [self._picture(photo) for photo in photos]
        maps = iter(self.condition.annotate([picture for picture in pictures if not isinstance(picture, Dropped)]))
        return [each if isinstance(each, Dropped) else self._write(each, next(maps)) for each in pictures]

    def _picture(self, photo: Photo) -> UInt8[np.ndarray, "h w 3"] | Dropped:
        if not photo.bytes:
            return Dropped("unreadable", "the file is empty")
        try:
            picture = self.read(self.source / photo.path)
        except InputError as error:
            return Dropped("unreadable", str(error).removeprefix(f"{self.source / photo.path}: "))
        return picture if isinstance(picture, Dropped) else self.resize(picture)

    def _write(self, picture: UInt8[np.ndarray, "h w 3"], control: UInt8[np.ndarray, "h w 3"]) -> Pair:
        control = self.resize.frame(control, BEHIND_MAP)
        picture = self.resize.frame(picture, 0)
        name = hashlib.sha256(str(picture.shape).encode() + picture.tobytes()).hexdigest()[:20]
        source, target = encode(control, "png"), encode(picture, self.target_format)
        write_whole(self.out / "source" / f"{name}.png", source)
        write_whole(self.out / "target" / f"{name}.{self.target_format}", target)
        return Pair(name, len(source), len(target))

    def read(self, path: Path) -> UInt8[np.ndarray, "h w 3"] | Dropped:
        """A photo, at its own size or at least twice the size that is needed. Raises InputError as `decode`."""
        data = read_file(path)
        height, width = size_of(path, data)
        if min(height, width) < self.min_side:
            return Dropped("tiny", f"{width}x{height} px (width x height), below min_side={self.min_side}")
        # At just the size needed, a JPEG decoder's own shrinking blurs; at twice the size it cannot be told apart.
        tall, wide = self.resize.shape(height, width)
        with _one_large_photo if height * width > LARGE else nullcontext():
            return decode(path, data, least=(2 * tall, 2 * wide))


def encode(image: UInt8[np.ndarray, "h w 3"], suffix: str) -> bytes:
    """An image as a file's content; of grey pixels, a PNG is a grey one, quicker to read."""
    red, green, blue = (image[..., channel] for channel in range(3))
    if suffix == "png" and np.array_equal(red, green) and np.array_equal(red, blue):
        image = red
    file = io.BytesIO()
    Image.fromarray(image).save(file, **ENCODINGS[suffix])
    return file.getvalue()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises OutputError if it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
