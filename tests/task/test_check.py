"""task=check as it is typed."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from cnx.condition import Canny
from cnx.data.prepare.pair import encode
from cnx.data.synthetic import Birds

Execute = Callable[..., None]
CHECK = ["task=check", "data.root=birds", "out=checked", "data.heldout=0.2"]


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    monkeypatch.chdir(tmp_path)
    lines = []
    for number in range(30):
        pair = Birds().draw(number, 128)
        line = {"source": f"source/{number}.png", "target": f"target/{number}.jpg", "prompt": pair.prompt}
        for kind, image, suffix in (("source", Canny()(pair.target), "png"), ("target", pair.target, "jpg")):
            path = Path("birds") / line[kind]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image, suffix))
        lines.append(line)
    write(lines)
    return lines


def write(lines: list[dict[str, str]]) -> None:
    Path("birds/prompt.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def problems() -> dict[str, str]:
    with Path("checked/problems.csv").open(encoding="utf-8", newline="") as file:
        return {Path(row["target"]).name: row["problem"] for row in csv.DictReader(file)}


def said(capsys: pytest.CaptureFixture) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_good_data_set_passes(listing: list[dict[str, str]], execute: Execute, capsys: pytest.CaptureFixture) -> None:
    execute(*CHECK)
    out = said(capsys)
    assert "birds: 30 pairs" in out and "128x128 (100%)" in out and "FAILS" not in out and "WARNING" not in out
    assert not problems()
    with Image.open("checked/contact_sheet.png") as sheet:
        assert sheet.width > 400
    assert not list(Path("birds").glob("*.csv"))  # it writes nothing into the data set


def test_what_training_would_stop_at_ends_with_status_1(
    listing: list[dict[str, str]], execute: Execute, capsys
) -> None:
    Path("birds/target/3.jpg").unlink()
    with pytest.raises(SystemExit, match="birds: training would fail: 1 pairs cannot be used: .*3.jpg.*on_error=skip"):
        execute(*CHECK)
    assert problems() == {"3.jpg": "files: TRAINING FAILS"}
    execute(*CHECK, "data.on_error=skip")
    with pytest.raises(SystemExit, match="nothing to measure control on"):
        execute(*CHECK, "data.on_error=skip", "data.heldout=1e-9")


def test_what_spoils_training_is_a_warning(
    listing: list[dict[str, str]], execute: Execute, capsys: pytest.CaptureFixture
) -> None:
    listing[2]["prompt"] = "a very long caption " * 40
    listing[4]["prompt"] = " "
    listing[6]["source"] = listing[7]["source"]
    Image.new("RGB", (128, 128)).save("birds/source/8.png")
    write(listing)
    execute(*CHECK, "data.resolution=256")
    found = problems()
    assert found["8.jpg"] == "maps: WARNING" and found["6.jpg"] == "fit of maps: WARNING"
    assert found["2.jpg"] == "captions: WARNING" and found["4.jpg"] == "empty captions: note"
    assert "30 smaller than data.resolution=256" in said(capsys)


def test_maps_that_are_light_where_they_say_nothing_are_noted(
    listing: list[dict[str, str]], execute: Execute, capsys: pytest.CaptureFixture
) -> None:
    execute(*CHECK)
    assert "control begins later" not in said(capsys)
    for line in listing:
        ImageOps.invert(Image.open(file := Path("birds") / line["source"])).save(file)
    execute(*CHECK)
    assert "background of maps note brightness 24" in said(capsys)  # 240-odd of 255


def test_a_condition_that_is_not_the_maps_own_is_said(listing: list[dict[str, str]], execute: Execute, capsys) -> None:
    for number, line in enumerate(listing):
        line["source"] = f"source/{(number + 1) % 30}.png"
    write(listing)
    execute(*CHECK)
    assert "another condition's maps, or of other pictures?" in said(capsys)
    execute(*CHECK, "condition=none")
    assert "not looked at (condition=none)" in said(capsys)


def test_a_prepared_folder_says_what_its_maps_are(listing: list[dict[str, str]], execute: Execute, capsys) -> None:
    annotator = ["condition.low=20", "condition.high=40"]
    execute("task=prepare", "source=birds/target", "out=own", "size=64", "caption=folder", *annotator)
    execute("task=check", "data.root=own", "out=checked", "data.heldout=0.2", "data.resolution=64")
    out = said(capsys)
    assert "prepared.json says Canny" in out and "WARNING" not in out
    assert not problems()
