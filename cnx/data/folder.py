"""The Fill50K layout: a folder with prompt.json, control maps in source/ and images in target/."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cnx.errors import InputError

OnError = Literal["raise", "skip"]
OR_SKIP = ", or leave such items out with data.on_error=skip"

# Transparent parts of a map become black, which is "nothing here" in edges, lines, depth and poses alike;
# of a target they become white, as every browser and most training code show them.
BEHIND_MAP = 0
BEHIND_TARGET = 255


class File(Protocol):
    """An image file, which may lie in a folder (a Path), in a shard or in a table; str() names it in messages."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


F = TypeVar("F", bound=File, covariant=True)


@dataclass(frozen=True)
class Item(Generic[F]):
    """One training example: control map, image and prompt (which may be empty).

    `more` are the maps of further conditions, where a branch takes several: `maps` has all, in its channels' order.
    """

    source: F
    target: F
    prompt: str
    more: tuple[F, ...] = ()

    @property
    def maps(self) -> tuple[F, ...]:
        return (self.source, *self.more)


def read_folder(root: str | Path, limit: int | None = None, on_error: OnError = "raise") -> list[Item[Path]]:
    """Read the items of a data set folder in the order of its prompt.json, which has one JSON object per line.

    Paths are relative to the folder, with or without the `source/` and `target/` prefix, with `/` or with the `\\` of
    Windows. Blank lines are ignored, lines may end in CRLF, and the file may begin with a byte order mark.

    Args:
        limit: read the first `limit` items only; lines after them are not looked at.
        on_error: `skip` keeps an item whose files are missing, with the path where they were expected, for the
            caller to count; a prompt.json that cannot be understood is an error in any case.

    Raises:
        InputError: no folder, no prompt.json, no items, a line that is no item, a missing image file.
    """
    return list(list_folder(root, limit, on_error))


def list_folder(root: str | Path, limit: int | None = None, on_error: OnError = "raise") -> Iterator[Item[Path]]:
    """As `read_folder`, one item after another, so that a long prompt.json is never in memory as a whole."""
    root = Path(root)
    expected = "expected one JSON object per line with the keys source, target, prompt"
    check_limit(limit)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; set data.root to a folder with prompt.json, source/ and target/")
    listing = root / "prompt.json"
    if not listing.is_file():
        raise InputError(f"{listing}: no such file; {expected}{_instead(root)}")
    count = 0
    for where, entry in read_json_lines(listing, expected):
        if count == limit:
            return
        for key in ("source", "target", "prompt"):
            if key not in entry:
                raise InputError(f"{where}: no {key!r}; {expected}")
            if not isinstance(entry[key], str):
                raise InputError(f"{where}: {key} is {entry[key]!r}, not a string; {expected}")
        source, target = (_find_file(root, key, entry[key], where, on_error) for key in ("source", "target"))
        yield Item(source, target, entry["prompt"])
        count += 1
    if not count:
        raise InputError(f"{listing}: no items; {expected}")


def read_json_lines(listing: Path, expected: str) -> Iterator[tuple[str, dict]]:
    """Yield place ("file:number") and object of each line of a JSON Lines file that is not blank.

    Raises InputError for a line that is not UTF-8, not JSON or no object; the message ends in `expected`.
    """
    with listing.open("rb") as file:
        # A line ends at \n alone: str.splitlines() would cut at U+2028 in a prompt.
        for number, line in enumerate(file, start=1):
            where = f"{listing}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise InputError(f"{where}: not UTF-8 at byte {error.start} of the line; save it as UTF-8") from None
            if not text:
                continue
            try:
                entry = json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: not JSON ({error.msg}, column {error.colno}); {expected}") from None
            if not isinstance(entry, dict):
                raise InputError(f"{where}: a JSON {type(entry).__name__} instead of an object; {expected}")
            yield where, entry


def _instead(root: Path) -> str:
    """What else a folder without prompt.json may be."""
    if any(root.glob("metadata.*")) or any(root.glob("*/metadata.*")):
        return "; there is metadata.jsonl or metadata.csv: read it with data=imagefolder"
    if any(root.glob("*.tar")):
        return "; there are shards: read them with data=shards"
    return f"; to make a data set of a folder of pictures: python run.py task=prepare source={root} out=<folder>"


def _find_file(root: Path, key: str, value: str, where: str, on_error: OnError) -> Path:
    spellings = [value, value.replace("\\", "/")] if "\\" in value else [value]
    for path in (place / name for name in spellings for place in (root, root / key)):
        if path.is_file():
            return path
    name = spellings[-1]
    expected = root / name if name.startswith(f"{key}/") else root / key / name
    if on_error == "raise":
        raise InputError(f"{where}: {key} file {expected} is missing; restore it{OR_SKIP}")
    return expected


def check_limit(limit: int | None) -> None:
    """Raise InputError unless the number of items to read is positive, or None for all."""
    if limit is not None and limit < 1:
        raise InputError(f"data.limit={limit}: must be at least 1, or null for all items")


def check_resolution(resolution: int) -> None:
    """Raise InputError unless the side in pixels is a positive multiple of 8, as the VAE's 8x downsampling needs."""
    if resolution < 8 or resolution % 8:
        below = max(8, resolution // 8 * 8)
        nearest = f"{below}" if resolution < 8 else f"{below} or {below + 8}"
        raise InputError(f"data.resolution={resolution}: not a positive multiple of 8; use {nearest}")


def load_image(file: str | Path | File, behind: int = BEHIND_TARGET) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file (PNG, JPEG, WebP, ...) as 8-bit RGB, upright by its EXIF orientation.

    Grey, palette and CMYK images become RGB, of 16-bit channels the high byte is kept, and transparent parts are
    laid over a background of grey level `behind` (0 to 255). Grey of 16 bits whose brightest pixel is below 4096 is
    taken for one of 12 bits, as X-rays are stored, and below 256 for one of 8: it would be black otherwise. Decoded by
    Pillow, because OpenCV returns the readable part of a truncated file without an error.

    Raises:
        InputError: a file that is missing, damaged, truncated, or no image with integer channels.
    """
    return decode(file, read_file(Path(file) if isinstance(file, str) else file), behind)


def read_file(file: File) -> bytes:
    """Read a file's bytes. Raises InputError where that cannot be done."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{file}: no such image file; restore it") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}); restore it") from None


def decode(
    name: object, data: bytes, behind: int = BEHIND_TARGET, least: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image file's bytes as `load_image` does; `name` says in messages which file it is.

    least: height and width that the caller needs at least. A JPEG at least twice, four or eight times as large is
    decoded at that share of its size, which takes less time and memory. None: the image's own.
    """
    with _opened(name, data) as file:
        if least is not None:
            tall, wide = least if _is_upright(file) else least[::-1]
            file.draft(None, (wide, tall))  # pyright: ignore[reportArgumentType]  (None keeps the mode)
        file.load()
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16-bit grey; Pillow has 16-bit colour reduced to its high byte by now
            grey = np.asarray(image).astype(np.int64).clip(0, 65535)
            depth = next(bits for bits in (8, 12, 16) if grey.max() < 2**bits)
            image = Image.fromarray((grey >> (depth - 8)).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("floating-point pixels have no defined range")
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (behind, behind, behind, 255)), image)
        return np.asarray(image.convert("RGB"))


def size_of(name: object, data: bytes) -> tuple[int, int]:
    """Height and width that `decode` would give, from the file's head alone. Raises InputError as that does."""
    with _opened(name, data) as file:
        return (file.height, file.width) if _is_upright(file) else (file.width, file.height)


def _is_upright(file: Image.Image) -> bool:
    return file.getexif().get(ExifTags.Base.Orientation, 1) < 5  # 5 to 8 turn by a quarter


@contextmanager
def _opened(name: object, data: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data)) as file:
            yield file
    except UnidentifiedImageError:
        raise InputError(f"{name}: not an image of a known format; replace it") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too many pixels to decode safely; make it smaller ({error})") from None
    except Exception as error:  # Pillow's readers raise anything from SyntaxError to struct.error on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: not a readable image ({reason}); replace it") from error


def fit(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int | None = None, place: tuple[float, float] = (0.5, 0.5)
) -> UInt8[np.ndarray, "H W 3"]:
    """Crop an image to the shape of `height` x `width` pixels (None: a square), and resize it to that.

    `place` says which part is kept, from the top and from the left: 0 the first, 0.5 the centre, 1 the last.

    Shrinks with INTER_AREA and enlarges with INTER_LINEAR, maps and targets alike: both sample at pixel centres, so
    a map stays aligned with its target, and every thin line of a map survives (fainter), where INTER_NEAREST would
    drop most of them. Deviation: attempts 1 to 7 resized both with INTER_NEAREST.
    """
    width = height if width is None else width
    scale = min(image.shape[0] / height, image.shape[1] / width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = int((image.shape[0] - tall) * place[0]), int((image.shape[1] - wide) * place[1])
    image = image[top : top + tall, left : left + wide]
    if image.shape[:2] != (height, width):
        method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
        image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method)
    return np.asarray(image, dtype=np.uint8)


def load_control(item: Item, height: int, width: int | None = None) -> UInt8[np.ndarray, "H W m"]:
    """Read an item's control maps, cropped and resized as `fit` does, 3 channels for each.

    Raises InputError as `load_image` does.
    """
    return _stacked([fit(load_image(file, BEHIND_MAP), height, width) for file in item.maps])


def load_pair(
    item: Item, height: int, width: int | None = None, place: tuple[float, float] = (0.5, 0.5)
) -> tuple[UInt8[np.ndarray, "H W m"], UInt8[np.ndarray, "H W 3"]]:
    """Read an item's control maps, 3 channels for each, and target as RGB, all cropped and resized as `fit` does.

    Raises:
        InputError: a side that is no multiple of 8, an unreadable file, map and target of different size.
    """
    check_resolution(height)
    target = load_image(item.target, BEHIND_TARGET)
    maps = []
    for file in item.maps:
        control = load_image(file, BEHIND_MAP)
        check_sizes(replace(item, source=file), control, target)
        maps.append(fit(control, height, width, place))
    return _stacked(maps), fit(target, height, width, place)


def _stacked(maps: list[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "h w m"]:
    return maps[0] if len(maps) == 1 else np.concatenate(maps, axis=2)


def check_sizes(item: Item, control: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "H W 3"]) -> None:
    """Raise InputError unless control map and target are of one size."""
    if control.shape != target.shape:
        (map_height, map_width), (height, width) = control.shape[:2], target.shape[:2]
        raise InputError(
            f"{item.source}: the control map is {map_width}x{map_height}, its target {item.target} is {width}x{height}"
            " (width x height); make them the same size"
        )
