import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cnx.data.cache as cache_module
from cnx.data.cache import cache_latents, cache_text
from cnx.data.folder import Item, load_pair, read_folder
from cnx.data.split import Digest, digest
from cnx.errors import InputError


def read(root: Path) -> tuple[list[Item], list[Digest]]:
    items = read_folder(root)
    return items, [digest(item) for item in items]


def damage(path: Path) -> None:
    """Cut an image file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_each_row_is_the_latent_of_its_own_target(base, write_folder, tmp_path):
    items, digests = read(write_folder(37))  # three chunks, the last not full
    latents, skipped = cache_latents(base, items, digests, 16, tmp_path / "cache")
    assert len(latents) == 37 and not skipped
    for at in (0, 15, 16, 36):
        image = torch.from_numpy(load_pair(items[at], 16)[1]).permute(2, 0, 1)[None].float() / 255
        expected = base.encode_images(image)[0]
        assert latents[at].dtype == torch.float32
        torch.testing.assert_close(latents[at], expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(latents[[16, 0]], torch.stack([latents[16], latents[0]]))


def test_each_prompt_has_its_own_embedding_and_is_embedded_once(base, make_base, tmp_path):
    prompts = [f"prompt {i % 70}" for i in range(200)]
    text, row_of = cache_text(base, prompts, tmp_path)
    assert len(text) == len(row_of) == 71 and sorted(base.prompts[1:]) == sorted(row_of)  # the first asks the shape
    for prompt in ("", "prompt 0", "prompt 69"):
        torch.testing.assert_close(text[row_of[prompt]], make_base().encode_text([prompt])[0], rtol=1e-3, atol=1e-4)


def test_a_second_run_computes_nothing_wherever_the_same_files_lie(base, make_base, write_folder, tmp_path):
    items, digests = read(write_folder(20, "here"))
    first, _ = cache_latents(base, items, digests, 16, tmp_path / "cache")
    text, _ = cache_text(base, ["a", "b"], tmp_path / "cache")
    again = make_base()
    moved, same = read(write_folder(20, "there"))
    second, _ = cache_latents(again, moved, same, 16, tmp_path / "cache")
    other_text, _ = cache_text(again, ["b", "a", "b"], tmp_path / "cache")
    assert again.images == 0 and again.prompts == []
    assert second.path == first.path and other_text.path == text.path


def test_whatever_the_rows_depend_on_is_in_the_key(base, make_base, write_folder, tmp_path):
    items, digests = read(write_folder(4))
    variants = [
        cache_latents(base, items, digests, 16, tmp_path),
        cache_latents(base, items, digests, 24, tmp_path),
        cache_latents(base, items[:3], digests[:3], 16, tmp_path),
        cache_latents(base, items[::-1], digests[::-1], 16, tmp_path),
        cache_latents(make_base(seed=1), items, digests, 16, tmp_path),
    ]
    texts = [cache_text(base, ["a"], tmp_path), cache_text(base, ["b"], tmp_path)]
    texts += [cache_text(make_base(seed=1), ["a"], tmp_path), cache_text(base, ["a", "b"], tmp_path)]
    assert len({rows.path for rows, _ in variants}) == len(variants)
    assert len({rows.path for rows, _ in texts}) == len(texts)


class Interruption:
    """Stops a run in its second chunk, as Ctrl-C does."""

    def __init__(self) -> None:
        self.chunks = 0

    def __call__(self) -> None:
        self.chunks += 1
        if self.chunks == 2:
            raise KeyboardInterrupt


def test_what_was_interrupted_is_not_trusted(base, make_base, write_folder, tmp_path):
    items, digests = read(write_folder(20))
    with pytest.raises(KeyboardInterrupt):
        cache_latents(make_base(before_encode=Interruption()), items, digests, 16, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    latents, _ = cache_latents(base, items, digests, 16, tmp_path / "cache")
    assert base.images == 20 and all(latents[at].abs().sum() > 0 for at in range(20))


def test_a_killed_process_leaves_nothing_that_is_trusted(base, make_base, write_folder, tmp_path, monkeypatch):
    items, digests = read(write_folder(20))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache_module.shutil, "rmtree", lambda *_, **__: None)  # killed: no cleaning up
        cache_latents(make_base(before_encode=Interruption()), items, digests, 16, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    cache_latents(base, items, digests, 16, tmp_path / "cache")
    assert base.images == 20


def test_two_processes_that_make_the_same_cache_do_not_disturb_each_other(base, make_base, write_folder, tmp_path):
    items, digests = read(write_folder(4))
    found = []

    def finish_elsewhere() -> None:
        found.append(cache_latents(base, items, digests, 16, tmp_path / "cache")[0])

    overtaken = make_base(before_encode=finish_elsewhere)
    latents, _ = cache_latents(overtaken, items, digests, 16, tmp_path / "cache")
    assert torch.equal(latents[2], found[0][2]) and len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("kind", ["source", "target"])
def test_a_damaged_image_is_an_error_and_nothing_is_left(base, write_folder, tmp_path, kind):
    root = write_folder(20)
    damage(root / kind / "17.png")
    items, digests = read(root)
    with pytest.raises(InputError, match=f"{kind}/17.png"):
        cache_latents(base, items, digests, 16, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_skipped_items_are_remembered_and_an_error_for_who_does_not_skip(base, make_base, write_folder, tmp_path):
    root = write_folder(20)
    damage(root / "source" / "3.png")
    Image.new("RGB", (32, 40)).save(root / "target" / "17.png")
    items, digests = read(root)
    latents, skipped = cache_latents(base, items, digests, 16, tmp_path / "cache", "skip")
    assert list(skipped) == [3, 17] and "source/3.png" in skipped[3] and "32x40" in skipped[17]
    good, _ = cache_latents(base, items[4:5], digests[4:5], 16, tmp_path / "cache")
    torch.testing.assert_close(latents[4], good[0], rtol=1e-3, atol=1e-4)  # rows after a skipped one do not move
    again = make_base()
    assert cache_latents(again, items, digests, 16, tmp_path / "cache", "skip")[1] == skipped and again.images == 0
    with pytest.raises(InputError, match="source/3.png"):
        cache_latents(again, items, digests, 16, tmp_path / "cache", "raise")


def test_a_chunk_without_a_readable_image_is_skipped(base, write_folder, tmp_path):
    root = write_folder(20)
    for at in range(16):
        damage(root / "target" / f"{at}.png")
    items, digests = read(root)
    latents, skipped = cache_latents(base, items, digests, 16, tmp_path / "cache", "skip")
    assert list(skipped) == list(range(16)) and base.images == 4 and latents[19].abs().sum() > 0


def test_rows_that_half_precision_cannot_hold_are_an_error(make_base, write_folder, tmp_path):
    items, digests = read(write_folder(2))
    with pytest.raises(InputError, match="not finite"):
        cache_latents(make_base(scale=1e6), items, digests, 16, tmp_path / "cache")
    with pytest.raises(InputError, match="not finite"):
        cache_text(make_base(scale=float("nan")), ["a"], tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_worker_receives_a_path_and_not_the_rows(base, write_folder, tmp_path):
    items, digests = read(write_folder(3))
    latents, _ = cache_latents(base, items, digests, 256, tmp_path)
    sent = pickle.dumps(latents)
    assert len(sent) < 1000 < latents[0].numel()
    np.testing.assert_array_equal(pickle.loads(sent)[2], latents[2])
