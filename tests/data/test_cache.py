import hashlib
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

import cnx.data.cache as cache_module
from cnx.data.cache import ENTRY, Rows, cache_latents, cache_text
from cnx.data.folder import Item, load_pair, read_folder
from cnx.errors import InputError


def targets(items: list[Item]) -> np.ndarray:
    return np.array([hashlib.sha256(item.target.read_bytes()).digest() for item in items], dtype="V32")


def latents_of(base, items: list[Item], cache: Path, side: int = 16) -> tuple[Rows, np.ndarray]:
    return cache_latents(base, items, targets(items), (side, side), cache)


def text_of(base, prompts: list[str], cache: Path) -> tuple[Rows, np.ndarray, int]:
    digests = np.array([hashlib.sha256(prompt.encode()).digest() for prompt in prompts], dtype="V32")
    return cache_text(base, prompts.__getitem__, digests, cache)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_each_row_is_the_latent_of_its_own_target(base, write_folder, cache):
    items = read_folder(write_folder(37))  # three chunks, the last not full
    rows, of = latents_of(base, items, cache)
    assert len(rows) == 37
    for at in (0, 15, 16, 36):
        image = torch.from_numpy(load_pair(items[at], 16)[1]).permute(2, 0, 1)[None].float() / 255
        found = rows[int(of[at])]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, base.encode_images(image)[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(rows[[16, 0]], torch.stack([rows[16], rows[0]]))


def test_pictures_of_any_shape_are_cropped_to_the_size(base, write_folder, cache):
    items = read_folder(write_folder(3))
    rows, of = cache_latents(base, items, targets(items), (16, 32), cache)
    image = torch.tensor(load_pair(items[1], 16, 32)[1]).permute(2, 0, 1)[None].float() / 255
    assert rows[0].shape == (4, 2, 4)
    torch.testing.assert_close(rows[int(of[1])], base.encode_images(image)[0], rtol=1e-3, atol=1e-4)


def test_each_prompt_has_its_own_embedding_and_is_embedded_once(base, make_base, cache):
    prompts = [f"prompt {i % 70}" for i in range(200)]
    text, of, null = text_of(base, prompts, cache)
    assert len(text) == 71 and {*base.prompts} == {"", *prompts} and len([p for p in base.prompts if p]) == 70
    for at in (0, 69, 199):
        expected = make_base().encode_text([prompts[at]])[0]
        torch.testing.assert_close(text[int(of[at])], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(text[null], make_base().encode_text([""])[0], rtol=1e-3, atol=1e-4)


def test_what_is_known_is_not_computed_again_wherever_it_lies_and_whatever_lies_beside_it(
    base, make_base, write_folder, cache
):
    """The same pictures under other maps, with other prompts, in another place, order or number."""
    first, of = latents_of(base, read_folder(write_folder(32, "here")), cache)
    text_of(base, ["a", "b"], cache)
    again = make_base()
    moved = read_folder(write_folder(32, "there"))
    other = [Item(item.target, item.target, "another prompt") for item in moved]
    for items in (moved, other, moved[::-1], moved[:16]):
        rows, found = latents_of(again, items, cache)
        known = of[: len(items)] if items is not other and items[0] is moved[0] else None
        assert rows.folder == first.folder and (known is None or np.array_equal(found, known))
    text_of(again, ["b", "a", "b"], cache)
    assert again.images == 0 and again.prompts == []
    grown = read_folder(write_folder(48, "grown"))
    latents_of(again, grown, cache)
    text_of(again, ["a", "c"], cache)
    assert again.images == 16 and "c" in again.prompts and "a" not in again.prompts


def test_a_row_does_not_depend_on_what_was_in_the_cache_before(make_base, write_folder, tmp_path):
    items = read_folder(write_folder(37))
    fresh, of = latents_of(make_base(), items, tmp_path / "fresh")
    for known in ([0], [3, 20, 36], range(20), range(33, 37)):
        cache = tmp_path / f"{known}"
        latents_of(make_base(), [items[at] for at in known], cache)
        rows, found = latents_of(make_base(), items, cache)
        assert torch.equal(rows[found.tolist()], fresh[of.tolist()])


def test_whatever_the_rows_depend_on_is_in_the_key(base, make_base, write_folder, cache):
    items = read_folder(write_folder(4))
    folders = {latents_of(base, items, cache)[0].folder, latents_of(base, items, cache, 24)[0].folder}
    folders |= {latents_of(make_base(seed=1), items, cache)[0].folder}
    folders |= {text_of(base, ["a"], cache)[0].folder, text_of(make_base(seed=1), ["a"], cache)[0].folder}
    assert len(folders) == 5


class Interruption:
    """Stops a run in its second chunk, as Ctrl-C does."""

    def __init__(self) -> None:
        self.chunks = 0

    def __call__(self) -> None:
        self.chunks += 1
        if self.chunks == 2:
            raise KeyboardInterrupt


def test_an_interrupted_encoding_goes_on(base, make_base, write_folder, tmp_path):
    items = read_folder(write_folder(40))
    with pytest.raises(KeyboardInterrupt):
        latents_of(make_base(before_encode=Interruption()), items, tmp_path / "stopped")
    rows, of = latents_of(base, items, tmp_path / "stopped")
    assert base.images == 24  # the first 16 were there
    whole, all_of = latents_of(base, items, tmp_path / "whole")
    assert torch.equal(rows[of.tolist()], whole[all_of.tolist()])


@pytest.mark.parametrize("left", [("rows.bin", 100), ("entries.bin", 10), ("both", 10)])
def test_what_a_killed_process_left_half_written_does_not_count(base, make_base, write_folder, cache, left):
    items = read_folder(write_folder(40))
    first, of = latents_of(base, items[:32], cache)
    expected = first[of.tolist()]
    for name in ["rows.bin", "entries.bin"] if left[0] == "both" else [left[0]]:
        with (first.folder / name).open("ab") as file:
            file.write(b"\x07" * left[1])
    again = make_base()
    rows, found = latents_of(again, items, cache)
    assert again.images == 8 and torch.equal(rows[found[:32].tolist()], expected)
    assert (first.folder / "entries.bin").stat().st_size == 40 * ENTRY.itemsize


def test_a_damaged_row_is_an_error_that_names_the_file(base, write_folder, cache):
    rows, of = latents_of(base, read_folder(write_folder(20)), cache)
    file = rows.folder / "rows.bin"
    data = bytearray(file.read_bytes())
    data[3 * rows.row_bytes + 1] ^= 1
    file.write_bytes(data)
    rows = pickle.loads(pickle.dumps(rows))
    assert rows[[0, 1, 2, 4]].isfinite().all()
    with pytest.raises(InputError, match="row 3 is damaged") as caught:
        rows[[2, 3]]
    assert str(file) in str(caught.value) and "delete the folder" in str(caught.value)


def test_of_several_processes_each_picture_is_encoded_by_one(write_folder, cache, base):
    """The second waits, on the lock, for what the first makes, and has nothing left to do."""
    items = read_folder(write_folder(40))
    done: list[int] = []

    class Slow(type(base)):
        def encode_images(self, images):
            if not done:  # while the first holds the lock, no other process can take it
                lock = FileLock(next(cache.glob("latents-*")) / ".lock")
                with pytest.raises(TimeoutError):
                    lock.acquire(timeout=0)
            done.append(len(images))
            return super().encode_images(images)

    latents_of(Slow(), items, cache)
    latents_of(Slow(), items, cache)
    assert sum(done) == 40


def test_who_came_before_the_first_row_adds_behind_the_rows_of_others(cache):
    """Two runs begin on an empty cache: rows that one has mapped must not be written anew by the other."""
    digests = np.array([hashlib.sha256(bytes([i])).digest() for i in range(3)], dtype="V32")
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    early, late = Rows(cache / "rows"), Rows(cache / "rows")
    with early.locked():
        early.add(digests[:2], values[:2], "rows")
    early.refresh()
    with late.locked():
        assert late.find(digests).tolist() == [0, 1, -1]
        late.add(digests[2:], values[2:], "rows")
    assert np.array_equal(early[[0, 1]], values[:2])
    assert np.array_equal(Rows(cache / "rows")[[0, 1, 2]], values)


def test_a_second_process_waits_and_says_so(write_folder, cache, base, make_base, capsys):
    items = read_folder(write_folder(20))
    rows, _ = latents_of(base, items[:16], cache)
    take = f"lock = filelock.FileLock({str(rows.folder / '.lock')!r}); lock.acquire()"
    hold = f"import filelock; {take}; print(flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None and other.stdout is not None
    other.stdout.readline()
    threading.Timer(2.5, other.kill).start()  # a lock dies with its process
    latents_of(make_base(), items, cache)
    assert "Waiting for another process" in capsys.readouterr().out


def test_the_size_is_told_before_it_is_built_and_no_room_is_an_error(base, write_folder, cache, capsys, monkeypatch):
    items = read_folder(write_folder(20))
    usage = type("Usage", (), {"free": 3000})
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(InputError, match="no room for 20 pictures") as caught:
            latents_of(base, items, cache, 64)
        assert "data.cache_folder" in str(caught.value) and base.images == 0
    before = capsys.readouterr().out
    base.before_encode = lambda: told.append(capsys.readouterr().out)
    told: list[str] = []
    rows, _ = latents_of(base, items, cache, 64)
    size = sum((rows.folder / name).stat().st_size for name in ("rows.bin", "entries.bin"))
    assert "20 pictures" in told[0] and f"{size:,} bytes" in told[0] and "Encoding" not in before


def test_rows_that_half_precision_cannot_hold_are_an_error(make_base, write_folder, cache):
    items = read_folder(write_folder(2))
    with pytest.raises(InputError, match="not finite"):
        latents_of(make_base(scale=1e6), items, cache)
    with pytest.raises(InputError, match="not finite"):
        text_of(make_base(scale=float("nan")), ["a"], cache)
    assert len(latents_of(make_base(), items, cache)[0]) == 2


def test_a_worker_receives_a_path_and_not_the_rows(base, write_folder, cache):
    rows, _ = latents_of(base, read_folder(write_folder(3)), cache, 256)
    sent = pickle.dumps(rows)
    assert len(sent) < 1000 < rows[0].numel()
    np.testing.assert_array_equal(pickle.loads(sent)[2], rows[2])
