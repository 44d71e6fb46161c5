"""The imagefolder layout of Hugging Face: pictures, and metadata.jsonl or metadata.csv beside them."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cnx.data.folder import OR_SKIP, Item, OnError, check_limit, read_json_lines
from cnx.data.items import Items, Listed, file_hash
from cnx.errors import InputError


@dataclass(frozen=True)
class ImageFolder:
    """Reads a folder that has metadata.jsonl or metadata.csv, or whose subfolders have.

    Paths in it are relative to the file that names them, with `/` or the `\\` of Windows. As `datasets` has it, a
    column of files may be called `x_file_name` instead of `x`.

    Attributes:
        image, control, text: the columns of the picture, its control map and its prompt.
    """

    image: str = "file_name"
    control: str = "conditioning_image"
    text: str = "text"

    def __call__(self, root: str, limit: int | None, on_error: OnError, cache: Path) -> Items:
        check_limit(limit)
        listings = _listings(Path(root))
        hashes = [file_hash(listing) for listing in listings]
        parts = ("imagefolder", str(Path(root).resolve()), root, str(limit), repr(self), *hashes)
        return Listed.of(self._list(listings, limit, on_error), *parts, cache=cache)

    def _list(self, listings: list[Path], limit: int | None, on_error: OnError) -> Iterator[Item]:
        count = 0
        for listing in listings:
            for where, entry in _read_csv(listing) if listing.suffix == ".csv" else read_json_lines(listing, ""):
                if count == limit:
                    return
                target = _find(listing.parent, where, self._value(where, entry, self.image, "image"), on_error)
                source = _find(listing.parent, where, self._value(where, entry, self.control, "control"), on_error)
                yield Item(source, target, self._value(where, entry, self.text, "text"))
                count += 1
        if not count:
            raise InputError(f"{listings[0]}: no items; expected one a line")

    def _value(self, where: str, entry: dict, column: str, option: str) -> str:
        value = entry.get(column, entry.get(f"{column}_file_name"))
        if not isinstance(value, str):
            known = f"it has {', '.join(map(str, entry))}; say which with data.reader.{option}=<column>"
            raise InputError(f"{where}: column {column} is {value!r}, not a string; {known}")
        return value


def _listings(root: Path) -> list[Path]:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; set data.root to a folder with metadata.jsonl or metadata.csv")
    for pattern in ("metadata.{}", "*/metadata.{}"):
        for suffix in ("jsonl", "csv"):
            if found := sorted(root.glob(pattern.format(suffix))):
                return found
    remedy = f"to make a data set of a folder of pictures: python run.py task=prepare source={root} out=<folder>"
    raise InputError(f"{root}: no metadata.jsonl and no metadata.csv; {remedy}")


def _read_csv(listing: Path) -> Iterator[tuple[str, dict]]:
    try:
        with listing.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for entry in reader:
                yield f"{listing}:{reader.line_num}", entry
    except UnicodeDecodeError as error:
        raise InputError(f"{listing}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{listing}: not CSV ({error}); save it with a header line and commas") from None


def _find(folder: Path, where: str, value: str, on_error: OnError) -> Path:
    path = folder / value
    if not path.is_file() and "\\" in value:
        path = folder / value.replace("\\", "/")
    if on_error == "raise" and not path.is_file():
        raise InputError(f"{where}: file {path} is missing; restore it{OR_SKIP}")
    return path
