import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cnx.data.index as index_module
from cnx.data.folder import load_image, load_pair, read_folder
from cnx.data.module import Batch, ControlData
from cnx.data.split import digest, is_held_out
from cnx.data.synthetic import Fill50K
from cnx.errors import InputError


@pytest.fixture
def prepared(base):
    """Gives a function that makes the data of a folder ready, with settings that suit a handful of items."""

    def prepare(root: Path, **settings) -> ControlData:
        usual = {
            "resolution": 16,
            "heldout": 0.2,
            "batch_size": 4,
            "seed": 7,
            "cache_folder": Path(root).parent / "cache",
        }
        data = ControlData(root, **usual | settings)
        data.prepare(base)
        return data

    return prepare


def epoch(data: ControlData) -> list[Batch]:
    return list(data.train_dataloader())


def test_a_batch_holds_what_belongs_together(base, prepared, write_folder):
    data = prepared(write_folder(30))
    batch = epoch(data)[1]
    assert isinstance(batch, Batch) and len(batch.index) == 4
    for row, at in enumerate(batch.index.tolist()):
        item = data.items[at]
        control, target = (torch.from_numpy(image).permute(2, 0, 1) / 255 for image in load_pair(item, 16))
        assert torch.equal(batch.control[row], control)
        torch.testing.assert_close(batch.latents[row], base.encode_images(target[None])[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(batch.text[row], base.encode_text([item.prompt])[0], rtol=1e-3, atol=1e-4)
    assert all(tensor.dtype == torch.float32 for tensor in (batch.latents, batch.text, batch.control))
    torch.testing.assert_close(data.null_text, base.encode_text([""]), rtol=1e-3, atol=1e-4)


def test_every_item_is_trained_on_or_held_out(prepared, write_folder):
    data = prepared(write_folder(30))
    trained = set(itertools.chain(*(batch.index.tolist() for batch in epoch(data))))
    held = set(data.heldout(100).index)
    assert trained | held == set(range(30)) and not trained & held and held
    for item in data.items:
        assert is_held_out(digest(item).target, 0.2) == (item in data.heldout_items) == (item not in data.train_items)


def test_held_out_items_are_complete_and_fixed(base, prepared, write_folder):
    data = prepared(write_folder(40, "whole"))
    held = data.heldout(3)
    for row, at in enumerate(held.index):
        control, target = (torch.from_numpy(image).permute(2, 0, 1) / 255 for image in load_pair(data.items[at], 16))
        assert held.prompts[row] == data.items[at].prompt
        assert torch.equal(held.control[row], control) and torch.equal(held.target[row], target)
        torch.testing.assert_close(held.latents[row], base.encode_images(target[None])[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(held.text[row], base.encode_text([held.prompts[row]])[0], rtol=1e-3, atol=1e-4)
    shuffled = prepared(write_folder(40, "shuffled", seeds=list(range(40))[::-1])).heldout(3)
    assert torch.equal(shuffled.target, held.target) and shuffled.prompts == held.prompts
    everything = data.heldout(1000)
    assert everything.index[:3] == held.index and len(everything.index) == len(data.heldout_items)


def test_the_order_follows_the_seed_and_not_the_workers(prepared, write_folder):
    data = prepared(write_folder(20))
    order = [batch.index.tolist() for batch in epoch(data)]
    data.num_workers = 1
    assert [batch.index.tolist() for batch in epoch(data)] == order
    other = prepared(data.root, seed=8)
    assert [batch.index.tolist() for batch in epoch(other)] != order


def test_beginning_a_pass_leaves_the_global_generator_alone(prepared, write_folder):
    data = prepared(write_folder(12))
    before = torch.get_rng_state()
    next(iter(data.train_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


def test_content_follows_the_content(prepared, write_folder):
    here, there = write_folder(12, "here"), write_folder(12, "there")
    other = write_folder(12, "other", seeds=[*range(11), 50])
    same = prepared(here).content
    assert prepared(there).content == same
    assert prepared(other).content != same and prepared(here, limit=11).content != same


def test_skipped_items_are_counted_listed_and_nowhere_used(prepared, write_folder, capsys):
    root = write_folder(40)
    (root / "target/3.png").unlink()
    (root / "source/5.png").write_bytes(b"")
    for at in range(10, 16):
        path = root / "source" / f"{at}.png"
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="target/3.png"):
        prepared(root)
    for _ in range(2):  # the second time from the cache
        data = prepared(root, on_error="skip")
        told = capsys.readouterr().out
        assert "Skipped 8 of 40" in told and "target/3.png" in told and "and 3 more" in told
        assert told.count("\n  /") == 5 and len(data.skipped) == 8
        bad = {"3.png", "5.png", *(f"{at}.png" for at in range(10, 16))}
        used = [data.items[at] for batch in epoch(data) for at in batch.index.tolist()] + list(data.heldout_items)
        assert len(used) == 32 and not bad & {item.source.name for item in used}


def test_a_split_with_nothing_on_one_side_names_counts_and_a_remedy_that_helps(prepared, write_folder):
    root = write_folder(6)
    with pytest.raises(InputError, match="0 held-out items of 6") as caught:
        prepared(root, heldout=1e-6)
    remedy = float(str(caught.value).split("use data.heldout=")[1].split()[0])
    assert prepared(root, heldout=remedy).heldout_items
    with pytest.raises(InputError, match="0 training items of 6"):
        prepared(root, heldout=1 - 1e-9)
    with pytest.raises(InputError, match="0 held-out items beside 6 training items"):
        prepared(root, heldout=0).heldout(8)


@pytest.mark.parametrize("cache", ["off", "latents", False])
def test_what_is_not_cached_is_encoded_in_the_step(base, prepared, write_folder, cache):
    cached = prepared(write_folder(20))
    images = base.images
    data = prepared(write_folder(20, "again"), cache=cache)
    assert base.images == images
    base.prompts.clear()
    for batch, expected in zip(epoch(data), epoch(cached), strict=True):
        batch = data.on_after_batch_transfer(batch, 0)
        assert isinstance(batch, Batch) and torch.equal(batch.index, expected.index)
        assert torch.equal(batch.control, expected.control)
        for found, kept in zip(batch[:2], expected[:2], strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, kept, rtol=1e-3, atol=1e-4)
    assert len(base.prompts) == len(data.train_items)
    assert (base.images > images) == (cache != "latents")
    held, expected = data.heldout(3), cached.heldout(3)
    torch.testing.assert_close(held.latents, expected.latents, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(held.text, expected.text, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(data.null_text, cached.null_text, rtol=1e-3, atol=1e-4)


def test_flips_and_crops_are_drawn_afresh_in_each_epoch_and_the_same_again(prepared, write_folder, capsys):
    data = prepared(write_folder(20), heldout=0, random_flip=True)
    assert "encoded in each step" in capsys.readouterr().out
    plain = prepared(data.root, heldout=0)

    def controls(data: ControlData, epochs: int) -> list[dict[int, torch.Tensor]]:
        seen = []
        for number in range(epochs):
            data._count_done = lambda number=number: 5 * number
            pairs = [pair for batch in data.train_dataloader() for pair in zip(batch.index, batch.control, strict=True)]
            seen.append({int(at): control for at, control in pairs})
        return seen

    (straight,) = controls(plain, 1)
    first, second = controls(data, 2)
    flipped = [[torch.equal(seen[at], straight[at].flip(-1)) for at in range(20)] for seen in (first, second)]
    for seen, turned in zip((first, second), flipped, strict=True):
        assert all(flip or torch.equal(seen[at], straight[at]) for at, flip in enumerate(turned))
        assert 3 < sum(turned) < 17
    assert flipped[0] != flipped[1]
    again = controls(prepared(data.root, heldout=0, random_flip=True, num_workers=1), 2)
    assert all(torch.equal(again[1][at], second[at]) for at in range(20))


def test_a_warm_start_reads_no_image_and_a_changed_one_is_read_again(base, prepared, write_folder, monkeypatch):
    data = prepared(write_folder(20))
    root, content = Path(data.root), data.content
    read: list[str] = []
    whole = index_module.inspect
    monkeypatch.setattr(index_module, "inspect", lambda item: read.append(item.target.name) or whole(item))
    assert prepared(root).content == content and read == []
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(root / "source" / "5.png")
    changed = prepared(root)
    assert read == ["5.png"] and changed.content != content and base.images == 20
    Image.new("RGB", (8, 8)).save(root / "target" / "6.png")
    for _ in range(2):
        with pytest.raises(InputError, match="source/6.png.*32x32.*8x8"):
            prepared(root)
    Image.new("RGB", (32, 32)).save(root / "target" / "6.png")
    prepared(root)
    assert base.images == 20 + 16  # one, as the VAE sees it among sixteen


def test_an_index_goes_on_where_it_was_stopped(prepared, write_folder, monkeypatch):
    root = write_folder(20)
    read: list[str] = []
    whole = index_module.inspect

    def stop(item):
        if item.target.name == "12.png":
            raise KeyboardInterrupt
        return whole(item)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index_module, "inspect", stop)
        prepared(root)
    monkeypatch.setattr(index_module, "inspect", lambda item: read.append(item.target.name) or whole(item))
    assert len(prepared(root).items) == 20 and set(read) == {f"{at}.png" for at in range(12, 20)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"resolution": 100},
        {"cache": "yes"},
        {"shuffle_buffer": 0},
        {"buckets": 12},
        {"limit": 0},
        {"on_error": "ignore"},
        {"batch_size": 0},
        {"heldout": 1.0},
        {"heldout": -0.1},
    ],
)
def test_a_wrong_setting_is_refused_by_its_name_before_anything_is_read(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(InputError, match=f"data.{name}={value}"):
        ControlData(**({"root": "nowhere", "resolution": 16} | wrong))


def test_scenes_are_written_first_and_no_more_of_them_than_wanted(prepared, tmp_path):
    scenes = Fill50K()
    data = prepared(tmp_path / "circles", scenes=scenes, limit=20)
    pairs = [scenes.draw(i, 16) for i in range(20)]
    assert [item.prompt for item in data.items] == [pair.prompt for pair in pairs]
    assert data.items == read_folder(tmp_path / "circles")
    np.testing.assert_array_equal(load_image(data.items[4].target), pairs[4].target)


def test_a_folder_without_prefixes_or_prompts_trains_too(prepared, write_folder):
    root = write_folder(20)
    lines = [{"source": f"{i}.png", "target": f"{i}.png", "prompt": ""} for i in range(20)]
    (root / "prompt.json").write_text("\n".join(map(json.dumps, lines)))
    data = prepared(root)
    assert torch.equal(epoch(data)[0].text, data.null_text.expand(4, -1, -1))
