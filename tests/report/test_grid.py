import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnx.errors import InputError
from cnx.report import grid_over_time, sample_grid, save_image


def plain(*marks: int, side: int = 128) -> np.ndarray:
    """One image per mark, of a colour that no text has, however smoothed."""
    return np.stack([np.full((side, side, 3), (mark, 90, 160), dtype=np.uint8) for mark in marks])


def shows(page: Image.Image, mark: int) -> np.ndarray:
    return (np.asarray(page) == (mark, 90, 160)).all(axis=2)


def box(page: Image.Image, mark: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the image with this mark, which must be whole and there once."""
    hits = shows(page, mark)
    ys, xs = np.where(hits)
    left, top, right, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    assert hits[top:bottom, left:right].all()
    return left, top, right, bottom


def ink(page: Image.Image) -> np.ndarray:
    return (np.asarray(page) < 200).all(axis=2)


def test_every_image_stands_whole_in_its_row_and_column() -> None:
    columns = [plain(10 + i, 20 + i) for i in range(4)]
    page = sample_grid(*columns, captions=["one", "two"], title="step 400")
    boxes = [[box(page, row + column) for column in range(4)] for row in (10, 20)]
    assert all(right - left == bottom - top == 128 for row in boxes for left, top, right, bottom in row)
    for row in boxes:
        assert len({top for _, top, _, _ in row}) == 1
        lefts = [left for left, *_ in row]
        assert lefts == sorted(lefts) and min(np.diff(lefts)) > 128
    assert [left for left, *_ in boxes[0]] == [left for left, *_ in boxes[1]]


@pytest.mark.parametrize(("side", "shown"), [(32, 128), (128, 128), (200, 200), (512, 256)])
def test_images_are_shown_at_a_legible_size(side: int, shown: int) -> None:
    page = sample_grid(*[plain(10 + i, side=side) for i in range(4)], captions=["a"], title="t")
    left, top, right, bottom = box(page, 11)
    assert (right - left, bottom - top) == (shown, shown)


@pytest.mark.parametrize("caption", ["", "many words in a row " * 40, "onewordwithoutanend" * 30, "søren i Tōkyō"])
def test_no_caption_reaches_the_edge_of_the_page(caption: str) -> None:
    columns = [plain(250, 250) for _ in range(4)]
    page = sample_grid(*columns, captions=[caption, caption], title="a title of many words " * 10)
    marks = ink(page)
    assert not marks[:, -20:].any() and not marks[-20:].any() and not marks[:20].any() and not marks[:, :20].any()


def test_every_word_of_a_caption_is_drawn() -> None:
    columns = [plain(250) for _ in range(4)]
    empty, one, many = (ink(sample_grid(*columns, captions=["word " * n], title="t")).sum() for n in (0, 1, 200))
    assert many - empty == pytest.approx(200 * (one - empty), rel=0.1)


def test_long_captions_make_their_rows_higher_and_overlap_nothing() -> None:
    columns = [plain(10 + i, 20 + i) for i in range(4)]
    page = sample_grid(*columns, captions=["word " * 200, "b"], title="t")
    assert box(page, 20)[1] - box(page, 10)[1] > 300


def run_folder(folder: Path, steps: list[int], items: int = 3) -> Path:
    samples = folder / "samples"
    samples.mkdir(parents=True)
    prompts = np.array([f"picture {i}" for i in range(items)])
    np.savez(
        samples / "heldout.npz",
        control=plain(*[10] * items),
        target=plain(*[150 - i for i in range(items)]),
        prompts=prompts,
    )
    probes = []
    for i, step in enumerate(steps):
        np.savez(samples / f"step_{step:06d}.npz", samples=plain(*[20 + i] + [200] * (items - 1)))
        probes.append({"step": step, "raw": 0.3, "published": 0.1, "calibrated": 0.1 * i})
    (samples / "probe.json").write_text(json.dumps({"probes": probes}))
    return folder


def test_time_runs_from_left_to_right_between_map_and_target(tmp_path: Path) -> None:
    path = grid_over_time(run_folder(tmp_path / "birds" / "now", [0, 400, 800]))
    assert path == tmp_path / "birds" / "now" / "samples_over_time.png"
    page = Image.open(path)
    lefts = [box(page, mark)[0] for mark in (20, 21, 22, 150)]
    assert lefts == sorted(lefts)
    assert np.where(shows(page, 10))[1].max() < lefts[0], "the control maps come first"
    assert {file.name for file in path.parent.iterdir()} == {"samples", "samples_over_time.png"}


def test_of_many_steps_some_are_chosen_the_first_and_the_last_always(tmp_path: Path) -> None:
    page = Image.open(grid_over_time(run_folder(tmp_path, list(range(0, 9200, 400)) + [9463])))
    shown = [mark for mark in range(20, 44) if shows(page, mark).any()]
    assert len(shown) == 10 and shown[0] == 20 and shown[-1] == 43
    assert set(np.diff(shown)) <= {2, 3}


def test_only_the_first_items_are_shown(tmp_path: Path) -> None:
    page = Image.open(grid_over_time(run_folder(tmp_path, [0], items=9), rows=2))
    assert shows(page, 149).any() and not shows(page, 148).any()


def test_pictures_of_probes_that_the_run_has_forgotten_are_not_shown(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [0, 400])
    np.savez(folder / "samples" / "step_000800.npz", samples=plain(99, 99, 99))  # of a run stopped after its checkpoint
    assert not shows(Image.open(grid_over_time(folder)), 99).any()


def test_a_folder_without_probes_is_the_user_s_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path.name}.*probe.json"):
        grid_over_time(tmp_path)
    folder = run_folder(tmp_path / "run", [])
    with pytest.raises(InputError, match="step_"):
        grid_over_time(folder)
    assert not (folder / "samples_over_time.png").exists()


def test_a_failed_save_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "grid.png"
    save_image(Image.new("RGB", (8, 8), "red"), path)
    before = path.read_bytes()

    def fails(self: Image.Image, part: Path, format: str) -> None:
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_image(Image.new("RGB", (8, 8), "blue"), path)
    assert path.read_bytes() == before
