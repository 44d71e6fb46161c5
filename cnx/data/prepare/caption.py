"""Where the prompts of own photos come from."""

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import ClassVar, Protocol

from cnx.errors import InputError


class Captions(Protocol):
    """Gives a prompt to each photo; "" where it has none.

    Attributes:
        looks: it looks at the prepared pictures, which takes long: done last, in batches, and remembered. The others
            go by the photos' names alone and are asked first, so that their mistakes are found before the work.
        batch_size: photos to ask about at once.
    """

    looks: ClassVar[bool]
    batch_size: int

    def __call__(self, source: Path, photos: Sequence[str], pictures: Sequence[Path]) -> list[str]:
        """The prompts of `photos` (paths under `source`), whose prepared pictures are the files `pictures`.

        `pictures` is empty for captions that do not look.
        """
        ...


class NoCaption:
    """Every prompt is empty."""

    looks = False
    batch_size = 0

    def __call__(self, source: Path, photos: Sequence[str], pictures: Sequence[Path]) -> list[str]:
        return [""] * len(photos)


class FolderName:
    """The name of the folder that a photo lies in, in a template.

    Args:
        template: the prompt, with `{folder}` where the name is to stand. `_` in a name becomes a space.
        pattern: a regular expression whose first group is the part of the name to take; a name without a match is
            taken whole. `n\\d+-(.*)` makes "Chihuahua" of "n02085620-Chihuahua", as Stanford Dogs names its folders.

    Raises:
        InputError: a template without `{folder}`, a pattern that is none or has no group.
    """

    looks = False
    batch_size = 0

    def __init__(self, template: str, pattern: str | None = None) -> None:
        if "{folder}" not in template:
            raise InputError(f"caption.template={template}: has no {{folder}} where the folder's name is to stand")
        self.template = template
        try:
            self.pattern = re.compile(pattern) if pattern is not None else None
        except re.error as error:
            raise InputError(f"caption.pattern={pattern}: is no regular expression ({error})") from None
        if self.pattern is not None and self.pattern.groups < 1:
            raise InputError(f"caption.pattern={pattern}: has no group; put the part to take in parentheses")

    def __call__(self, source: Path, photos: Sequence[str], pictures: Sequence[Path]) -> list[str]:
        here = source.resolve().name
        names = {photo: photo.rsplit("/", 2)[-2] if "/" in photo else here for photo in photos}
        return [self.template.replace("{folder}", self._clean(names[photo])) for photo in photos]

    def _clean(self, name: str) -> str:
        found = self.pattern.search(name) if self.pattern else None
        return one_line((found.group(1) or "" if found else name).replace("_", " "))


class Sidecar:
    """Captions that somebody has written: a .txt beside each photo, or one table for all.

    Args:
        file: a .csv, .tsv or .jsonl with a caption a line; None reads `dog.txt` beside `dog.jpg`. Photos are named in
            it by their path under the folder of photos, with `/` or `\\`, or by their name alone where that is clear.
        file_column, text_column: what name and caption are called in it.
    """

    looks = False
    batch_size = 0

    def __init__(
        self, file: str | Path | None = None, file_column: str = "file_name", text_column: str = "text"
    ) -> None:
        self.file = None if file is None else Path(file)
        self.file_column, self.text_column = file_column, text_column

    def __call__(self, source: Path, photos: Sequence[str], pictures: Sequence[Path]) -> list[str]:
        """Raises InputError: text that is not UTF-8, a table that is missing or damaged, no caption for any photo."""
        if self.file is None:
            captions = [
                _read(path) if (path := (source / photo).with_suffix(".txt")).is_file() else "" for photo in photos
            ]
            captions = [one_line(caption) for caption in captions]
            expected = f"{(source / photos[0]).with_suffix('.txt')}"
        else:
            table = self._table()
            times = Counter(photo.rsplit("/", 1)[-1] for photo in photos)
            captions = []
            for photo in photos:
                name = photo.rsplit("/", 1)[-1]
                captions.append(table.get(_key(photo)) or (table.get(_key(name), "") if times[name] == 1 else ""))
            expected = f"{self.file} to name {photos[0]}, but it names {next(iter(table), 'nothing')}"
        if not any(captions):
            raise InputError(f"caption=sidecar: no caption for any of {len(photos):,} photos; expected {expected}")
        return captions

    def _table(self) -> dict[str, str]:
        assert self.file is not None
        kind = self.file.suffix.lower()
        if kind not in (".csv", ".tsv", ".jsonl"):
            raise InputError(f"caption.file={self.file}: must be a .csv, .tsv or .jsonl file")
        if not self.file.is_file():
            raise InputError(f"caption.file={self.file}: no such file")
        text = _read(self.file)
        table: dict[str, str] = {}
        for where, row in (
            self._json_rows(text) if kind == ".jsonl" else self._csv_rows(text, "," if kind == ".csv" else "\t")
        ):
            for column in (self.file_column, self.text_column):
                if not isinstance(row.get(column), str):
                    raise InputError(
                        f"{where}: no {column!r} among {', '.join(map(str, row))}; caption.file_column and"
                        " caption.text_column say what name and caption are called"
                    )
            table[_key(row[self.file_column])] = one_line(row[self.text_column])
        return table

    def _json_rows(self, text: str):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"{self.file}:{number}: not JSON ({error.msg})") from None
                yield f"{self.file}:{number}", row if isinstance(row, dict) else {}

    def _csv_rows(self, text: str, delimiter: str):
        reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter)
        try:
            for row in reader:
                yield f"{self.file}:{reader.line_num}", row
        except csv.Error as error:
            raise InputError(f"{self.file}:{reader.line_num}: not CSV ({error})") from None


def one_line(text: str) -> str:
    """Text without line breaks and doubled spaces, in composed Unicode; bytes of a file name that are no text: "?"."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(unicodedata.normalize("NFC", text).split())


def _key(path: str) -> str:
    """A path as both sides of a comparison write it: with `/`, without `./`, in composed Unicode."""
    return unicodedata.normalize("NFC", PureWindowsPath(path.strip()).as_posix())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
