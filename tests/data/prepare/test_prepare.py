"""A folder of photos, as people have them, to a data set folder, whatever goes wrong."""

import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from cnx.condition import Canny
from cnx.data.folder import decode, load_image, load_pair, read_folder, size_of
from cnx.data.prepare.caption import FolderName, NoCaption
from cnx.data.prepare.journal import Journal
from cnx.data.prepare.pair import encode
from cnx.data.prepare.photos import find_photos
from cnx.data.prepare.prepare import Prepared, prepare
from cnx.data.prepare.resize import Crop, Keep, Pad
from cnx.errors import InputError


def picture(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """Sharp shapes on a soft ground: something to find edges in."""
    random = np.random.default_rng(seed)
    pixels = cv2.resize(random.integers(0, 256, (3, 4, 3), dtype=np.uint8), (width, height))
    for _ in range(6):
        (x, y), colour = random.integers(0, (width, height)).tolist(), random.integers(0, 256, 3).tolist()
        cv2.circle(pixels, (x, y), int(random.integers(8, 30)), colour, -1)
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos in folders with spaces and letters of all kinds."""
    root = tmp_path / "meine Fötos"
    for number in range(8):
        folder = root / ("hunde und 犬" if number % 2 else "a/b")
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number}.jpg", quality=95)
    return root


def run(source: Path, out: Path, **changes: Any) -> Prepared:
    arguments: dict[str, Any] = {
        "resize": Crop(64),
        "condition": Canny(),
        "captions": NoCaption(),
        "settings": {"condition": {"low": 100}},
        "caption_settings": {},
        "min_side": 16,
        "workers": 2,
    }
    return prepare(source, out, **arguments | changes)


def error_of(*arguments: Any, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        run(*arguments, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def content(out: Path) -> dict[str, bytes]:
    """All files that somebody may read, but for the time in prepared.json."""
    files = [file for file in out.rglob("*") if file.is_file() and ".prepare" not in file.parts]
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in files if file.name != "prepared.json"}


def test_the_folder_reads_as_a_data_set_whose_maps_are_its_pictures_own(photos: Path, tmp_path: Path) -> None:
    found = run(photos, tmp_path / "out", captions=FolderName("a {folder}"), target_format="png")
    items = read_folder(tmp_path / "out")
    assert len(items) == len(found.items) == found.made == 8 and not found.dropped
    assert [item.prompt for item in items] == ["a b"] * 4 + ["a hunde und 犬"] * 4
    for item, made in zip(items, found.items, strict=True):
        control, target = load_pair(item, 64)
        assert np.array_equal(target, Crop(64)(load_image(photos / made.photo)))
        assert np.array_equal(control, Canny()(target)) and control.any()
    lines = [json.loads(line) for line in (tmp_path / "out" / "prompt.json").read_text("utf-8").splitlines()]
    assert all("\\" not in line["source"] + line["target"] for line in lines)


def test_as_jpeg_a_picture_is_nearly_the_same_and_its_map_is(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "png", target_format="png")
    run(photos, tmp_path / "jpg")
    for exact, near in zip(read_folder(tmp_path / "png"), read_folder(tmp_path / "jpg"), strict=True):
        (control, target), (other_control, other) = load_pair(exact, 64), load_pair(near, 64)
        assert np.array_equal(control, other_control)
        assert np.abs(target.astype(int) - other).mean() < 1.5


def test_every_mode_and_format_is_read_upright(tmp_path: Path) -> None:
    source, plain = tmp_path / "photos", picture(1, 96, 64)
    source.mkdir()
    for suffix in ("png", "webp", "bmp", "tiff", "jpg"):
        picture(len(suffix) + ord(suffix[0]), 96, 64).save(source / f"plain.{suffix}")
    for mode in ("L", "P", "1", "CMYK", "RGBA", "LA", "I;16"):
        image = Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else None
        (image or plain.convert(mode)).save(source / f"{mode.replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    picture(40, 128, 64).save(source / "turned.JPG", exif=turned, quality=95)
    found = run(source, tmp_path / "out", resize=Keep(64), target_format="png")
    # Grey of 8 and 16 bits and with an opaque channel is the same picture, and so is colour.
    assert {photo: why.kind for photo, why in found.dropped.items()} == dict.fromkeys(
        ("L.png", "LA.png", "RGBA.png"), "duplicate"
    )
    assert len(found.items) == 10
    by_photo = {item.photo: item for item in found.items}
    shape = load_image(tmp_path / "out" / "target" / f"{by_photo['turned.JPG'].name}.png").shape
    assert shape == (128, 64, 3)


def test_a_jpeg_is_shrunk_in_decoding_only_where_it_cannot_be_told() -> None:
    big = picture(3, 1600, 1200)
    data = encode(np.asarray(big), "jpg")
    assert size_of("x", data) == (1200, 1600)
    assert decode("x", data, least=(128, 100)).shape == (150, 200, 3)
    assert decode("x", data, least=(601, 100)).shape == (1200, 1600, 3)
    full, drafted = Crop(64)(decode("x", data)), Crop(64)(decode("x", data, least=(128, 128)))
    assert np.abs(full.astype(int) - drafted).mean() < 1


def test_what_cannot_be_used_is_dropped_and_listed(photos: Path, tmp_path: Path) -> None:
    (photos / "text.jpg").write_text("not a picture")
    (photos / "empty.png").touch()
    whole = (photos / "a/b/0.jpg").read_bytes()
    (photos / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "nowhere.jpg").symlink_to(photos / "gone.jpg")
    (photos / "again.jpeg").write_bytes(whole)
    load = load_image(photos / "a/b/2.jpg")
    Image.fromarray(load).save(photos / "saved again.bmp")  # other bytes, the same picture
    picture(50, 15, 300).save(photos / "tiny.png")
    Image.new("1", (30_000, 6_000)).save(photos / "huge.png")  # 180 megapixels in a few kilobytes
    picture(51, 3_000, 40).save(photos / "long.png")
    (photos / "notes.txt").touch()
    (photos / "._0.jpg").write_text("macOS leaves these")
    found = run(photos, tmp_path / "out")
    assert found.ignored == 1 and len(found.items) == 9
    with (tmp_path / "out" / "dropped.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["photo"]: (row["why"], row["detail"]) for row in csv.DictReader(file)}
    kinds = {photo: why for photo, (why, _) in rows.items()}
    assert kinds == {
        "again.jpeg": "duplicate", "saved again.bmp": "duplicate", "empty.png": "unreadable", "half.jpg": "unreadable",
        "huge.png": "unreadable", "nowhere.jpg": "unreadable", "text.jpg": "unreadable", "tiny.png": "tiny",
    }  # fmt: skip
    assert rows["again.jpeg"][1] == "the same picture as a/b/0.jpg"
    assert "empty" in rows["empty.png"][1] and "truncated" in rows["half.jpg"][1]
    assert "too many pixels" in rows["huge.png"][1] and "15x300" in rows["tiny.png"][1]


def test_the_border_of_a_padded_photo_is_no_edge(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (100, 50), "white").save(tmp_path / "photos" / "white.png")
    run(tmp_path / "photos", tmp_path / "out", resize=Pad(64), target_format="png")
    control, target = load_pair(read_folder(tmp_path / "out")[0], 64)
    assert not control.any() and target[32].all() and not target[0].any()


def test_a_second_run_does_only_what_is_missing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    before = content(out)
    written = {name: (out / name).stat().st_mtime_ns for name in before if "/" in name}
    gone, half, *_ = sorted((out / "target").iterdir())
    gone.unlink()
    half.write_bytes(half.read_bytes()[:-1])  # whatever did that
    picture(100).save(photos / "zz new.jpg")
    found = run(photos, out)
    assert found.made == 3 and len(found.items) == 9
    assert {name: content(out)[name] for name in written} == {name: before[name] for name in written}
    touched = {name for name in written if (out / name).stat().st_mtime_ns != written[name]}
    assert touched == {
        f"{kind}/{file.stem}.{end}" for file in (gone, half) for kind, end in (("source", "png"), ("target", "jpg"))
    }
    assert run(photos, out).made == 0


def test_a_photo_that_changed_is_done_again_and_one_that_went_is_listed_no_more(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    picture(77).save(photos / "a/b/0.jpg", quality=95)
    (photos / "a/b/2.jpg").unlink()
    found = run(photos, out)
    assert found.made == 1 and found.stray == 2 and len(read_folder(out)) == 7
    fresh = tmp_path / "fresh"
    run(photos, fresh)
    assert (fresh / "prompt.json").read_bytes() == (out / "prompt.json").read_bytes()


def test_a_photo_that_could_not_be_read_is_tried_again(photos: Path, tmp_path: Path) -> None:
    bad, whole = photos / "a/b/0.jpg", (photos / "a/b/0.jpg").read_bytes()
    bad.write_bytes(b"?" * len(whole))
    stamp = bad.stat().st_mtime_ns
    assert len(run(photos, tmp_path / "out").items) == 7
    bad.write_bytes(whole)
    os.utime(bad, ns=(stamp, stamp))
    assert len(run(photos, tmp_path / "out").items) == 8


def test_a_run_that_is_killed_anywhere_is_finished_by_the_next(photos: Path, tmp_path: Path) -> None:
    for number in range(20, 60):
        picture(number).save(photos / f"{number}.jpg", quality=95)
    run(photos, tmp_path / "whole")
    out = tmp_path / "out"
    program = (
        "import sys; from pathlib import Path; from cnx.data.prepare.prepare import prepare;"
        "from cnx.data.prepare.resize import Crop; from cnx.data.prepare.caption import NoCaption;"
        "from cnx.condition import Canny\n"
        "class Slow(Canny):\n"
        "    def __call__(self, image):\n"
        "        import threading; threading.Event().wait(0.01)\n"
        "        return super().__call__(image)\n"
        "prepare(*sys.argv[1:], Crop(64), Slow(), NoCaption(), {'condition': {'low': 100}}, {}, 16, 'jpg', 1)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, photos, out], cwd=Path(__file__).parents[3])
    noted, until = out / ".prepare" / "pairs.jsonl", time.monotonic() + 60
    while not (noted.exists() and noted.stat().st_size) and time.monotonic() < until:
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not (out / "prompt.json").exists()
    (out / "source" / ".half.png.1-1.tmp").write_bytes(b"half")
    with noted.open("a") as journal:
        journal.write('{"path": "a/b/')
    found = run(photos, out)
    assert 0 < found.made < 48 and content(out) == content(tmp_path / "whole")


def test_ctrl_c_keeps_what_is_done(photos: Path, tmp_path: Path) -> None:
    for number in range(20, 120):
        picture(number).save(photos / f"{number}.jpg")
    calls = iter(range(10**6))

    def stop(self: Journal, entries: Any, append: Callable = Journal.append) -> None:
        append(self, entries)
        if next(calls) == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path / "out")
    assert not (tmp_path / "out" / "prompt.json").exists()
    assert run(photos, tmp_path / "out").made == 108 - 32


def test_a_full_disk_leaves_no_half_and_the_next_run_goes_on(photos: Path, tmp_path: Path) -> None:
    """A limit on the size of files stops writing in the middle of one, as a full disk does."""
    out = tmp_path / "out"
    random = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(random).save(photos / "zz noise.png")  # larger than the others
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        message = error_of(photos, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(out / "target") in message and "run the same command again" in message
    assert not (out / "prompt.json").exists() and not list(out.rglob("*.tmp"))
    for kind in ("source", "target"):
        for file in (out / kind).iterdir():
            load_image(file)
    run(photos, out)
    assert len(read_folder(out)) == 9


def test_a_folder_that_may_not_be_written_is_said(photos: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for place in (tmp_path, *list(tmp_path.parents)[:3]):
        place.chmod(place.stat().st_mode | 0o055)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)  # nobody: root may write anywhere
    try:
        message = error_of(photos, closed / "out")
    finally:
        os.seteuid(was)
    assert f"out={closed / 'out'}: cannot be written (Permission denied)" in message


def test_places_that_would_mix_photos_and_data_set_are_refused(photos: Path, tmp_path: Path) -> None:
    assert "lies in source" in error_of(photos, photos / "out")
    assert "lies in source" in error_of(photos, photos)
    assert "lies in out" in error_of(photos / "a", photos)
    (tmp_path / "link").symlink_to(photos)
    assert "lies in source" in error_of(photos, tmp_path / "link" / "out")
    assert not (photos / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").touch()
    assert "not from task=prepare (thesis.doc)" in error_of(photos, tmp_path / "full")
    assert "is a file" in error_of(photos, tmp_path / "full" / "thesis.doc")
    assert len(list((tmp_path / "full").iterdir())) == 1


def test_other_settings_are_noticed_and_nothing_is_touched(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    before = content(out)
    message = error_of(photos, out, settings={"condition": {"low": 50}})
    assert "prepared with condition.low=100, and now condition.low=50" in message
    assert content(out) == before
    found = run(photos, out, captions=FolderName("{folder}"), caption_settings={"template": "{folder}"})
    assert found.recaptioned and found.made == 0
    assert {item.prompt for item in read_folder(out)} == {"b", "hunde und 犬"}


def test_two_processes_do_not_write_one_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".prepare").mkdir(parents=True)
    with FileLock(tmp_path / "out" / ".prepare" / "lock"):
        assert "another process is preparing it" in error_of(photos, tmp_path / "out")
    (tmp_path / "out" / ".prepared.json.1-1.tmp").touch()  # a process killed as it began
    assert len(run(photos, tmp_path / "out").items) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_format": "gif"}, "target_format=gif"),
        ({"min_side": 0}, "min_side=0"),
        ({"workers": 0}, "workers=0"),
        ({"min_side": 1000}, "none of 8 pictures can be used; a/b/0.jpg is tiny: 160x120"),
    ],
)
def test_settings_that_cannot_be_are_said(photos: Path, tmp_path: Path, changes: dict, message: str) -> None:
    assert message in error_of(photos, tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "prompt.json").exists()


def test_a_folder_without_pictures_is_said(tmp_path: Path) -> None:
    assert "no such folder" in error_of(tmp_path / "none", tmp_path / "out")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.pdf").touch()
    message = error_of(tmp_path / "docs", tmp_path / "out")
    assert "no pictures" in message and "1 other files" in message
    assert not (tmp_path / "out").exists()


def test_links_to_folders_are_followed_once(photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "up").symlink_to(photos)
    (photos / "else").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    picture(9).save(tmp_path / "elsewhere" / "9.png")
    assert [photo.path for photo in find_photos(photos)[0]][-5:] == [
        "else/9.png", *(f"hunde und 犬/{number}.jpg" for number in (1, 3, 5, 7))
    ]  # fmt: skip


class Seen:
    """Captions that look: the mean colour in words; counts what it is asked."""

    looks = True
    batch_size = 3

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, source: Path, photos: list[str], pictures: list[Path]) -> list[str]:
        self.asked.append(len(photos))
        return [f"{photo} {load_image(file).mean():.0f}" for photo, file in zip(photos, pictures, strict=True)]


def test_captions_that_look_are_asked_in_batches_and_remembered(photos: Path, tmp_path: Path) -> None:
    out, seen, again = tmp_path / "out", Seen(), Seen()
    run(photos, out, captions=seen)
    assert seen.asked == [3, 3, 2]
    first = read_folder(out)
    picture(20).save(photos / "new.jpg")
    run(photos, out, captions=again)
    assert again.asked == [1] and [item for item in read_folder(out) if item in first] == first
    assert run(photos, out, caption_settings={"other": 1}).recaptioned
    run(photos, out, captions=again)  # back again: nothing is asked twice
    assert again.asked == [1]


def test_hugging_face_and_the_training_script_read_the_same_folder(photos: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "test train"  # words that mean a split elsewhere
    run(photos, out, captions=FolderName("a {folder}"))
    Image.new("RGB", (8, 8)).save(out / "contact_sheet.png")
    for arguments in ({"path": "imagefolder", "data_dir": str(out)}, {"path": str(out)}):
        loaded = datasets.load_dataset(**arguments, cache_dir=str(tmp_path / "cache"))["train"]
        # Without options, diffusers' train_controlnet.py takes the columns in this order.
        assert loaded.column_names == ["image", "text", "conditioning_image"]
        for row, item in zip(loaded, read_folder(out), strict=True):
            assert row["text"] == item.prompt
            assert np.array_equal(np.asarray(row["image"]), load_image(item.target))
            assert np.array_equal(np.asarray(row["conditioning_image"].convert("RGB")), load_image(item.source))
