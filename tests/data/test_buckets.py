from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnx.data.buckets import Size, bucket_sizes, nearest_bucket
from cnx.data.folder import read_folder
from cnx.data.module import ControlData
from cnx.errors import InputError

SHAPES = [(64, 64), (96, 64), (64, 96), (128, 64), (48, 80), (200, 150)]


def grid(height: int, width: int) -> np.ndarray:
    """A pattern in which each pixel of a 4 px raster says where it is."""
    rows, columns = np.indices((height, width)) // 4
    return np.stack([rows * 7 % 256, columns * 11 % 256, (rows + columns) % 2 * 255], axis=-1).astype(np.uint8)


@pytest.fixture
def folder(write_folder) -> Path:
    """Pictures of several shapes; map and picture show the same pattern."""
    root = write_folder(60)
    for i, item in enumerate(read_folder(root)):
        pattern = grid(*SHAPES[i % len(SHAPES)])
        pattern[0, 0] = i  # each its own content
        for file in (item.source, item.target):
            Image.fromarray(pattern).save(file)
    return root


@pytest.fixture
def prepared(base, folder, tmp_path):
    def prepare(**settings) -> ControlData:
        usual = {"heldout": 0.2, "batch_size": 4, "seed": 3, "cache_folder": tmp_path / "cache", "buckets": 16}
        data = ControlData(folder, 64, **usual | settings)
        data.prepare(base)
        return data

    return prepare


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (768, 64), (128, 32), (128, 16)])
def test_buckets_are_divisible_as_large_as_allowed_and_come_in_pairs(resolution, step):
    sizes = bucket_sizes(resolution, step)
    assert Size(resolution, resolution) in sizes and len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0 and max(height, width) <= 2 * min(height, width)
        assert resolution**2 - step * max(height, width) < height * width <= resolution**2
        assert Size(width, height) in sizes


def test_a_step_that_leaves_no_square_is_refused():
    for step in (0, 12, 48):
        with pytest.raises(InputError, match=f"data.buckets={step}"):
            bucket_sizes(128, step)


def test_a_picture_goes_where_least_of_it_is_cut():
    sizes = bucket_sizes(512, 64)
    heights, widths = np.array([512, 1000, 400, 3000]), np.array([512, 700, 900, 100])
    for at, number in enumerate(nearest_bucket(heights, widths, sizes)):
        ratio = widths[at] / heights[at]
        kept = [min(ratio, w / h) / max(ratio, w / h) for h, w in sizes]
        assert kept[number] == max(kept)


def test_each_batch_is_of_one_bucket_and_each_item_comes_once(prepared):
    data = prepared()
    batches = list(data.train_dataloader())
    shapes = {tuple(batch.control.shape[2:]) for batch in batches}
    assert shapes == {(64, 64), (80, 48), (48, 80)}
    assert sorted(at for batch in batches for at in batch.index.tolist()) == data._train.tolist()
    for batch in batches:
        height, width = batch.control.shape[2:]
        assert batch.latents.shape[2:] == (height // 8, width // 8)
    assert data.heldout(3).control.shape[2:] == (64, 64)


@pytest.mark.parametrize("settings", [{}, {"random_crop": True, "random_flip": True}, {"cache": "off"}])
def test_map_and_picture_are_cropped_together_to_the_pixel(base, prepared, settings):
    """Map and picture hold the same pattern, so the latents must be those of the map."""
    data = prepared(**settings)
    for batch in data.train_dataloader():
        batch = data.on_after_batch_transfer(batch, 0)
        torch.testing.assert_close(batch.latents, base.encode_images(batch.control), rtol=2e-3, atol=2e-3)


def test_a_picture_of_its_buckets_size_is_not_touched(prepared):
    data = prepared(heldout=0)
    for batch in data.train_dataloader():
        for at, control in zip(batch.index.tolist(), batch.control, strict=True):
            if SHAPES[at % len(SHAPES)] == tuple(control.shape[1:]):
                expected = grid(*control.shape[1:])
                expected[0, 0] = at
                assert torch.equal((control * 255).round().byte(), torch.from_numpy(expected).permute(2, 0, 1))


def test_the_order_of_buckets_follows_the_seed_and_goes_on_where_it_was(prepared):
    def order(data: ControlData) -> list[list[int]]:
        return [batch.index.tolist() for batch in data.train_dataloader()]

    data = prepared()
    whole = order(data)
    assert order(prepared()) == whole != order(prepared(seed=4))
    data._count_done = lambda: 5
    assert order(data)[: len(whole) - 5] == whole[5:]
    data.num_workers = 1
    assert order(data)[: len(whole) - 5] == whole[5:]


def test_sides_that_the_base_cannot_halve_are_refused(prepared):
    with pytest.raises(InputError, match="data.buckets=8: this base takes sides that are multiples of 16"):
        prepared(buckets=8)
