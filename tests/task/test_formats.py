"""Real runs on data that is not Fill50K's, of pictures that are not square."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnx.data.folder import Item
from cnx.data.shards import write_shards
from cnx.task.run_folder import read_config
from small_runs import launch


@pytest.fixture
def in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """shards/ of pictures, wide, tall and square."""
    monkeypatch.chdir(tmp_path)
    items = []
    for i in range(24):
        size = [(96, 160), (160, 96), (128, 128)][i % 3]
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        files = [tmp_path / f"{i}.{kind}.png" for kind in ("map", "picture")]
        for file in files:
            Image.fromarray(pixels).save(file)
        items.append(Item(*files, "a red bird"))
    write_shards(items, tmp_path / "shards", items_a_shard=9)


@pytest.mark.parametrize("kept", [["data.cache=all"], ["data.cache=off", "data.random_flip=true"]])
def test_pictures_that_are_not_square_train_in_buckets(in_shards: None, kept: list[str]) -> None:
    launch(
        "data=shards",
        "data.root=shards",
        "data.buckets=32",
        "data.heldout=0.1",
        "data.batch_size=2",
        "trainer.max_steps=4",
        "trainer.precision=32-true",
        "trainer.log_every_n_steps=1",
        "logger=none",
        "callback.probe.items=1",
        "callback.probe.budget=null",
        "sampler.steps=1",
        *kept,
    )
    (folder,) = Path("runs/default").iterdir()
    losses = [row["train/loss"] for row in read_metrics(folder) if row["train/loss"]]
    assert len(losses) == 4 and np.isfinite(np.array(losses, dtype=float)).all()


def read_metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_from_before_data_cache_was_a_choice_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {root: photos, cache: elsewhere}")
    assert read_config(tmp_path).data == {"root": "photos", "cache_folder": "elsewhere", "cache": "all"}
