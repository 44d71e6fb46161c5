"""Data sets of the `datasets` library: by the name on the hub, or saved to disk."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnx.data.folder import Item, OnError, check_limit
from cnx.data.items import Items, key, whole
from cnx.data.shards import Shards, write_shards
from cnx.errors import InputError


@dataclass(frozen=True)
class Cell:
    """An image file that lies in a table."""

    place: str
    data: bytes | None
    path: str | None

    @property
    def name(self) -> str:
        return Path(self.path).name if self.path else self.place

    def __str__(self) -> str:
        return self.place

    def read_bytes(self) -> bytes:
        if self.data is not None:
            return self.data
        if self.path is None:
            raise FileNotFoundError(self.place)
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class HuggingFace:
    """Reads a data set on the hub, one that `Dataset.save_to_disk` wrote, or a folder that `load_dataset` knows.

    Attributes:
        split: which split, and which part of it, as `datasets` writes it: train, train[:1000].
        image, control, text: the columns of the picture, its control map and its prompt; diffusers' own training
            script has the same names. Where a prompt is a list, its first entry is taken.
        config: of a data set that has several; null takes its default.
        revision: a branch, tag or commit on the hub.
        streaming: read the rows one after another as far as `limit` says, without fetching the rest of the data set,
            and keep them in the cache as shards.
    """

    split: str = "train"
    image: str = "image"
    control: str = "conditioning_image"
    text: str = "text"
    config: str | None = None
    revision: str | None = None
    streaming: bool = False

    def __call__(self, root: str, limit: int | None, on_error: OnError, cache: Path) -> Items:
        check_limit(limit)
        if self.streaming:
            home = cache / f"streamed-{key(('huggingface', root, repr(self), str(limit)))}"
            if not home.is_dir():
                with whole(home) as partial:
                    rows = itertools.islice(self._items(root, self._prepared(root)), limit)
                    write_shards(rows, partial)
            return Shards()(str(home), limit, on_error, cache)
        table = self._prepared(root)
        if limit is not None:
            table = table.select(range(min(limit, len(table))))
        if not len(table):
            raise InputError(f"{root}: no items in {self.split}")
        return Table(root, table, self)

    def _prepared(self, root: str) -> Any:
        """The table or stream, with the three columns alone and with images as files, to be hashed."""
        from datasets import Image

        table = self._load(root)
        for option in ("image", "control", "text"):
            if (column := getattr(self, option)) not in table.column_names:
                known = f"it has {', '.join(table.column_names)}; say which with data.reader.{option}=<column>"
                raise InputError(f"{root}: no column {column}; {known}")
        for column in (self.image, self.control):
            if isinstance(table.features[column], Image):
                table = table.cast_column(column, Image(decode=False))
        return table.select_columns([self.image, self.control, self.text])

    def _items(self, root: str, rows: Iterable[dict[str, Any]]) -> Iterator[Item]:
        for at, row in enumerate(rows):
            yield self.item(root, at, row)

    def item(self, root: str, at: int, row: dict[str, Any]) -> Item:
        """The item of row number `at`. Raises InputError where the prompt is none."""
        text = row[self.text]
        text = text[0] if isinstance(text, list) and text else text
        if not isinstance(text, str):
            raise InputError(f"{root}, row {at}: {self.text} is {text!r}, not a string")
        return Item(_cell(root, at, self.control, row), _cell(root, at, self.image, row), text)

    def _load(self, root: str) -> Any:
        try:
            import datasets
        except ImportError:
            raise InputError('data=huggingface needs the library datasets: pip install -e ".[datasets]"') from None
        try:
            if (Path(root) / "dataset_dict.json").is_file():
                return datasets.load_from_disk(f"{root}/{self.split}")
            if (Path(root) / "state.json").is_file():
                return datasets.load_from_disk(root)
            return datasets.load_dataset(
                root, self.config, split=self.split, revision=self.revision, streaming=self.streaming
            )
        except Exception as error:  # datasets, the hub and pyarrow each raise their own kinds
            reason = " ".join(str(error).split())[:200]
            remedy = "give a folder that save_to_disk wrote, or load it once with a network so that it is cached"
            raise InputError(f"data.root={root}: no data set to be had from there; {remedy} ({reason})") from error


class Table(Items):
    """The rows of a `datasets.Dataset`, which lies on disk and is mapped into memory."""

    def __init__(self, root: str, table: Any, columns: HuggingFace) -> None:
        self.root, self.table, self.columns = root, table, columns
        self.identity = f"huggingface-{table._fingerprint}"  # of the content and what was done to it

    def __len__(self) -> int:
        return len(self.table)

    def item(self, at: int) -> Item:
        return self.columns.item(self.root, at, self.table[at])


def _cell(root: str, at: int, column: str, row: dict[str, Any]) -> Cell:
    value, place = row[column], f"{root}, row {at}, {column}"
    if isinstance(value, str):  # a column of paths
        return Cell(place, None, value)
    if not isinstance(value, dict):
        return Cell(place, None, None)
    return Cell(place, value.get("bytes"), value.get("path"))
