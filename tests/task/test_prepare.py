"""task=prepare as it is typed."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cnx.data.folder import read_folder
from cnx.data.shards import Shards
from cnx.data.synthetic import Birds

Execute = Callable[..., None]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        folder = Path("my photos") / ("sea gulls" if number % 2 else "herons")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(Birds().draw(number, 96).target).resize((120, 96)).save(folder / f"{number}.jpg")
    return Path("my photos")


def test_photos_become_a_data_set_with_a_sheet_to_look_at(
    photos: Path, execute: Execute, capsys: pytest.CaptureFixture
) -> None:
    (photos / "broken.jpg").touch()
    arguments = ["task=prepare", "source='my photos'", "out='a set'", "size=64", "condition.low=50"]
    execute(*arguments, "caption=folder", "caption.template='{folder}, flying'")
    said = capsys.readouterr().out
    assert "6 pairs of 7 photos" in said and "6 pairs made" in said and "1 unreadable" in said
    assert re.search(r"task=check data.root='a set'$", said.strip())
    assert [item.prompt for item in read_folder("a set")] == ["herons, flying"] * 3 + ["sea gulls, flying"] * 3
    assert json.loads(Path("a set/prepared.json").read_text())["settings"]["condition"]["low"] == 50
    with Image.open("a set/contact_sheet.png") as sheet:
        assert sheet.width > sheet.height > 192

    execute(*arguments, "caption=none")
    said = capsys.readouterr().out
    assert "6 pairs were there" in said and "captions are other ones now" in said and "caption=blip" in said
    with pytest.raises(SystemExit, match="condition.low=50, and now condition.low=60"):
        execute(*arguments, "condition.low=60")


def test_shards_hold_the_same_pairs(photos: Path, execute: Execute) -> None:
    pytest.importorskip("webdataset")
    execute("task=prepare", "source='my photos'", "out=set", "size=64", "caption=folder", "shards=shards")
    sharded = Shards()("shards", None, "raise", Path("cache"))
    for item, packed in zip(read_folder("set"), sharded, strict=True):
        assert item.prompt == packed.prompt
        assert item.source.read_bytes() == packed.source.read_bytes()
        assert item.target.read_bytes() == packed.target.read_bytes()
    with pytest.raises(SystemExit, match="holds shards already"):
        execute("task=prepare", "source='my photos'", "out=set", "size=64", "caption=folder", "shards=shards")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["out=x"], "source must be given"),
        (["source='my photos'"], "out must be given"),
        (["source='my photos'", "out=x", "condition=none"], "makes maps of photos"),
        (["source='my photos'", "out=x", "condition=depth"], "--local-dir models/Depth-Anything-V2-Small-hf, and give"),
        (["source='my photos'", "out=x", "size=100"], "size=100: must be a positive multiple of 8"),
        (["source='my photos'", "out=x", "caption=blip", "caption.path=none"], "load it once with a network"),
        (["source='my photos'", "out=x", "caption=sidecar"], "no caption for any of 6 photos"),
    ],
)
def test_a_mistake_is_a_line_and_leaves_nothing(
    photos: Path, execute: Execute, overrides: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        execute("task=prepare", *overrides)
    line = str(stopped.value.code)
    assert line.startswith("cnx: ") and message in line and "\n" not in line
    assert not Path("x").exists()


def test_the_detector_of_drawn_scenes_is_taken_where_it_is_asked_for(photos: Path, execute: Execute) -> None:
    detector = "condition.path=pretrained/tiny_scenes"
    execute("task=prepare", "source='my photos'", "out=set", "size=64", "condition=depth", detector, "caption=none")
    assert len(list(Path("set/source").iterdir())) == len(list(Path("set/target").iterdir())) > 0


def test_blip_captions_batches_with_a_prefix(photos: Path, blip: Path, execute: Execute) -> None:
    arguments = ["task=prepare", "source='my photos'", "size=64", "caption=blip", f"caption.path={blip}"]
    execute(*arguments, "out=one", "caption.batch_size=1")
    execute(*arguments, "out=four", "caption.batch_size=4")
    execute(*arguments, "out=begun", "caption.prefix=a b")
    one, four, begun = ([item.prompt for item in read_folder(out)] for out in ("one", "four", "begun"))
    assert one == four and all(one)
    assert all(prompt.startswith("[DEC] a b ") for prompt in begun)  # toy BLIP's word for the beginning
