"""Every format gives the same items, the same split and the same batches."""

import csv
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnx.data.folder import Item, read_folder
from cnx.data.huggingface import HuggingFace
from cnx.data.imagefolder import ImageFolder
from cnx.data.items import Fill50KLayout, Items
from cnx.data.module import ControlData
from cnx.data.shards import Shards, write_shards
from cnx.errors import InputError

FORMATS = ["folder", "jsonl", "csv", "huggingface", "shards"]


@pytest.fixture
def written(write_folder, tmp_path):
    """Gives a function that writes the same items in a format; returns the reader and the root."""

    def write(format: str, count: int = 24):
        plain = write_folder(count)
        entries = [
            {"file_name": f"target/{i}.png", "conditioning_image": f"source/{i}.png", "text": item.prompt}
            for i, item in enumerate(read_folder(plain))
        ]
        if format == "jsonl":
            (plain / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        if format == "csv":
            with (plain / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
                writer = csv.DictWriter(file, list(entries[0]))
                writer.writeheader()
                writer.writerows(entries)
        if format == "shards":
            write_shards(read_folder(plain), tmp_path / "shards", items_a_shard=10)
            return Shards(), str(tmp_path / "shards" / "{000000..000002}.tar")
        if format == "huggingface":
            datasets = pytest.importorskip("datasets")
            columns = {"image": "target", "conditioning_image": "source"}
            rows = {name: [str(plain / kind / f"{i}.png") for i in range(count)] for name, kind in columns.items()}
            rows["text"] = [entry["text"] for entry in entries]
            table = datasets.Dataset.from_dict(rows)
            for name in columns:
                table = table.cast_column(name, datasets.Image())
            table.save_to_disk(tmp_path / "saved")
            return HuggingFace(), str(tmp_path / "saved")
        return (Fill50KLayout() if format == "folder" else ImageFolder()), str(plain)

    return write


def read(reader, root: str, tmp_path: Path, limit: int | None = None, on_error="raise") -> Items:
    return reader(root, limit, on_error, tmp_path / "cache")


def contents(items) -> list[tuple[bytes, bytes, str]]:
    return [(item.source.read_bytes(), item.target.read_bytes(), item.prompt) for item in items]


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_the_same_items(written, tmp_path, format):
    reader, root = written(format)
    items = read(reader, root, tmp_path)
    expected = contents(read_folder(tmp_path / "photos"))
    assert contents(items) == expected and len(items) == 24
    assert contents(pickle.loads(pickle.dumps(items))) == expected
    assert contents(read(reader, root, tmp_path, limit=13)) == expected[:13]
    assert contents([items[-1]]) == expected[-1:] and contents(items[3:5]) == expected[3:5]
    assert read(reader, root, tmp_path).identity == items.identity
    assert read(reader, root, tmp_path, limit=13).identity != items.identity


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_trains_on_the_same_pairs(base, written, tmp_path, format):
    reader, root = written(format)
    settings = {"heldout": 0.2, "batch_size": 4, "cache_folder": tmp_path / "cache"}
    data = ControlData(root, 16, reader=reader, **settings)
    data.prepare(base)
    plain = ControlData(tmp_path / "photos", 16, **settings)
    plain.prepare(base)
    assert base.images == 24 and data.content == plain.content  # encoded once for both
    assert torch.equal(data.heldout(3).target, plain.heldout(3).target)
    assert torch.equal(data.heldout(3).text, plain.heldout(3).text)
    batches = {tuple(b.index.tolist()): b for b in data.train_dataloader()}
    seen = sorted(at for index in batches for at in index)
    assert seen == sorted(at for b in plain.train_dataloader() for at in b.index.tolist())
    for index, batch in batches.items():
        for row, at in enumerate(index):
            control = np.asarray(
                Image.open(tmp_path / f"photos/source/{at}.png").resize((16, 16), Image.Resampling.BOX)
            )
            assert (batch.control[row] * 255 - torch.tensor(control).permute(2, 0, 1)).abs().max() <= 1


def test_prompt_json_may_come_from_windows(tmp_path, write_folder):
    root = write_folder(3, "mit Leerzeichen und Ümlaut")
    lines = [{"source": f"source\\{i}.png", "target": f"target\\{i}.png", "prompt": "鳥"} for i in range(3)]
    (root / "prompt.json").write_bytes("\r\n".join(map(json.dumps, lines)).encode("utf-8-sig"))
    for i, item in enumerate(read_folder(root)):
        assert item == Item(root / f"source/{i}.png", root / f"target/{i}.png", "鳥")


def test_a_line_that_is_not_utf8_is_named(write_folder):
    root = write_folder(2)
    with (root / "prompt.json").open("ab") as file:
        file.write('{"source": "0.png", "target": "0.png", "prompt": "Vögel"}\n'.encode("latin-1"))
    assert "prompt.json:3: not UTF-8" in error_of(read_folder, root)


def test_metadata_may_name_its_columns_otherwise_and_lie_one_folder_down(tmp_path, write_folder):
    root = write_folder(2, "data/train")
    entry = {"file_name": "target\\0.png", "edges_file_name": "source/0.png", "caption": "two\nlines, and a comma"}
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(entry))
        writer.writeheader()
        writer.writerow(entry)
    items = read(ImageFolder(control="edges", text="caption"), str(tmp_path / "data"), tmp_path)
    assert list(items) == [Item(root / "source/0.png", root / "target/0.png", entry["caption"])]
    message = error_of(read, ImageFolder(), str(tmp_path / "data"), tmp_path)
    assert "conditioning_image is None" in message and "edges_file_name" in message and "data.reader.control" in message


def test_a_folder_of_pictures_alone_names_the_way_to_a_data_set(tmp_path, write_folder):
    root = write_folder(2)
    (root / "prompt.json").unlink()
    for reader in (Fill50KLayout(), ImageFolder()):
        assert f"task=prepare source={root}" in error_of(read, reader, str(root), tmp_path)
    (root / "metadata.csv").touch()
    assert "data=imagefolder" in error_of(read, Fill50KLayout(), str(root), tmp_path)
    (root / "metadata.csv").unlink()
    (root / "000.tar").touch()
    assert "data=shards" in error_of(read, Fill50KLayout(), str(root), tmp_path)


def test_a_missing_file_of_metadata_is_named_unless_items_are_skipped(written, tmp_path):
    reader, root = written("jsonl", 4)
    (Path(root) / "target/2.png").unlink()
    message = error_of(read, reader, root, tmp_path)
    assert "metadata.jsonl:3" in message and "target/2.png" in message and "data.on_error=skip" in message
    assert len(read(reader, root, tmp_path, on_error="skip")) == 4


def test_a_column_that_a_table_does_not_have_is_named(written, tmp_path):
    _, root = written("huggingface", 3)
    message = error_of(read, HuggingFace(text="caption"), root, tmp_path)
    assert "no column caption" in message and "conditioning_image" in message and "data.reader.text" in message
    assert str(tmp_path / "nothing") in error_of(read, HuggingFace(), str(tmp_path / "nothing"), tmp_path)


def test_a_stream_gives_the_same_items_and_is_read_once_and_no_further(written, tmp_path):
    """From parquet files, which load_dataset reads as it reads those of the hub."""
    datasets = pytest.importorskip("datasets")
    _, root = written("huggingface", 6)
    (tmp_path / "parquet").mkdir()
    datasets.load_from_disk(root).to_parquet(tmp_path / "parquet" / "train.parquet")
    expected = contents(read_folder(tmp_path / "photos"))
    stream = HuggingFace(streaming=True)
    assert contents(read(stream, str(tmp_path / "parquet"), tmp_path, limit=4)) == expected[:4]
    (tmp_path / "parquet" / "train.parquet").unlink()
    items = read(stream, str(tmp_path / "parquet"), tmp_path, limit=4)
    assert contents(items) == expected[:4] and [item.target.name for item in items][0] == "000000000.image.png"


def test_shards_are_written_the_same_each_time_and_never_over_others(write_folder, tmp_path):
    items = read_folder(write_folder(5))
    first = write_shards(items, tmp_path / "a", items_a_shard=2)
    second = write_shards(items, tmp_path / "b", items_a_shard=2)
    assert [path.name for path in first] == ["000000.tar", "000001.tar", "000002.tar"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with tarfile.open(first[2]) as tar:
        assert tar.getnames() == ["000000004.control.png", "000000004.image.png", "000000004.prompt.txt"]
    assert "holds shards already" in error_of(write_shards, items, tmp_path / "a")


def test_webdataset_itself_reads_the_shards(write_folder, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    items = read_folder(write_folder(3))
    paths = write_shards(items, tmp_path / "a")
    samples = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False))
    assert [sample["prompt.txt"].decode() for sample in samples] == [item.prompt for item in items]
    assert [sample["image.png"] for sample in samples] == [item.target.read_bytes() for item in items]


def test_shards_behind_a_url_are_fetched_once(write_folder, tmp_path):
    paths = write_shards(read_folder(write_folder(5)), tmp_path / "far", items_a_shard=3)
    url = "file://" + str(tmp_path / "far" / "{000000..000001}.tar")
    expected = contents(read(Shards(), url, tmp_path))
    for path in paths:
        path.unlink()
    assert contents(read(Shards(), url, tmp_path)) == expected and len(expected) == 5
    gone = "file://" + str(tmp_path / "far" / "000007.tar")
    assert gone in error_of(read, Shards(), gone, tmp_path)


def test_an_item_of_a_shard_that_lacks_a_file_is_named(base, write_folder, tmp_path):
    (shard,) = write_shards(read_folder(write_folder(12)), tmp_path / "a")
    cut = tmp_path / "cut.tar"
    with tarfile.open(shard) as whole, tarfile.open(cut, "w") as tar:
        for member in whole:
            if member.name != "000000003.control.png":
                tar.addfile(member, whole.extractfile(member))
    message = error_of(read, Shards(), str(cut), tmp_path)
    assert str(cut) in message and "000000003 has no control" in message
    data = ControlData(str(cut), 16, reader=Shards(), heldout=0, on_error="skip", cache_folder=tmp_path / "cache")
    data.prepare(base)
    assert len(data.skipped) == 1 and len(data.train_items) == 11
    cut.write_bytes(shard.read_bytes()[:2000] + b"x" * 700)
    assert str(cut) in error_of(read, Shards(), str(cut), tmp_path)
    assert "no such shard" in error_of(read, Shards(), str(tmp_path / "none.tar"), tmp_path)
