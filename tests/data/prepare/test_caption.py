"""Captions from folders' names and from files that people write on all kinds of machines."""

import csv
import io
import json
from pathlib import Path

import pytest

from cnx.data.prepare.caption import FolderName, NoCaption, Sidecar
from cnx.errors import InputError

PHOTOS = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "zoë.png"]


def ask(captions, source: Path, photos: list[str] = PHOTOS) -> list[str]:
    return captions(source, photos, [])


def error_of(captions, source: Path, photos: list[str] = PHOTOS) -> str:
    with pytest.raises(InputError) as caught:
        ask(captions, source, photos)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_none_is_empty(tmp_path: Path) -> None:
    assert ask(NoCaption(), tmp_path) == [""] * 4


def test_a_folder_names_its_photos(tmp_path: Path) -> None:
    source = tmp_path / "my_birds"
    photos = ["1.jpg", "n02085620-Chihuahua/1.jpg", "dogs/golden_retriever/1.jpg", "犬/1.jpg", "zoe\u0308/1.jpg"]
    assert ask(FolderName("a {folder}!", r"^n\d+-(.*)"), source, photos) == [
        "a my birds!", "a Chihuahua!", "a golden retriever!", "a 犬!", "a zo\u00eb!",
    ]  # fmt: skip
    assert ask(FolderName("a {folder}"), source, photos)[1] == "a n02085620-Chihuahua"
    assert ask(FolderName("{folder}"), source, ["caf\udce9/1.jpg"]) == ["caf?"]  # a name that is no UTF-8


@pytest.mark.parametrize(
    ("template", "pattern", "message"),
    [("a photo", None, "folder"), ("{folder}", "(", "no regular expression"), ("{folder}", "a", "no group")],
)
def test_a_wrong_template_or_pattern_is_said(template: str, pattern: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FolderName(template, pattern)


def test_text_beside_a_photo_may_have_a_mark_and_any_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_bytes(b"\xef\xbb\xbfein Hund,\r\n  gr\xc3\xb6\xc3\x9fer\r\n")
    (tmp_path / "zoë.txt").write_text("鳥が 飛ぶ\u2028собака", encoding="utf-8")
    assert ask(Sidecar(), tmp_path) == ["ein Hund, größer", "", "", "鳥が 飛ぶ собака"]
    (tmp_path / "a" / "2.txt").write_bytes("größer".encode("latin-1"))
    assert "2.txt: not UTF-8 at byte 2" in error_of(Sidecar(), tmp_path)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("slash", ["/", "\\"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_table_may_come_from_any_machine(tmp_path: Path, kind: str, slash: str, mark: str, newline: str) -> None:
    rows = [
        ("a/1.jpg", 'ein "Hund", größer'),
        ("./b/1.jpg", "鳥"),
        ("2.jpg", "by its name alone"),
        ("zoe\u0308.png", "x"),
    ]
    lines = io.StringIO()
    if kind == "jsonl":
        for name, caption in rows:
            lines.write(
                json.dumps({"file_name": name.replace("/", slash), "text": caption}, ensure_ascii=False) + newline
            )
    else:
        writer = csv.writer(lines, delimiter="," if kind == "csv" else "\t", lineterminator=newline)
        writer.writerow(["file_name", "text"])
        writer.writerows((name.replace("/", slash), caption) for name, caption in rows)
    table = tmp_path / f"captions.{kind}"
    table.write_bytes((mark + lines.getvalue()).encode())
    assert ask(Sidecar(table), tmp_path) == ['ein "Hund", größer', "by its name alone", "鳥", "x"]


def test_a_name_that_two_photos_have_is_not_enough(tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n1.jpg,which one?\n2.jpg,two\n")
    assert ask(Sidecar(table, "image", "caption"), tmp_path) == ["", "two", "", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "image,text\n1.jpg,one\n", "c.csv:2: no 'file_name' among image, text"),
        ("c.csv", "file_name,text\nother.jpg,one\n", "to name a/1.jpg, but it names other.jpg"),
        ("c.csv", "", "but it names nothing"),
        ("c.jsonl", '{"file_name": "1.jpg", "text": "x"}\n{"file\n', "c.jsonl:2: not JSON"),
        ("c.jsonl", '["1.jpg"]\n', "c.jsonl:1: no 'file_name'"),
        ("c.xlsx", "", "must be a .csv, .tsv or .jsonl"),
    ],
)
def test_a_table_that_cannot_be_used_is_said(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    assert message in error_of(Sidecar(tmp_path / name), tmp_path)


def test_missing_captions_are_said(tmp_path: Path) -> None:
    assert f"expected {tmp_path / 'a' / '1.txt'}" in error_of(Sidecar(), tmp_path)
    assert "no such file" in error_of(Sidecar(tmp_path / "none.csv"), tmp_path)
