"""The order of batches, alone and under a real Trainer that is stopped and resumed."""

import itertools
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

from cnx.data.folder import read_folder
from cnx.data.module import Batch, ControlData
from cnx.data.order import SeededBatches
from cnx.data.shards import Shards, write_shards

COUNT, BATCH = 22, 4  # 6 micro-batches in an epoch, the last of 2 items
PER_EPOCH = 6


def take(count: int, *args, done: int = 0, **kwargs) -> list[list[int]]:
    """The first `count` micro-batches from number `done` on, over as many passes as that needs."""
    position = done
    batches: list[list[int]] = []
    order = SeededBatches(*args, **kwargs, done=lambda: position)
    epoch = len(SeededBatches(*args, **kwargs | {"accumulate": 1}))
    while len(batches) < count:
        for batch in order:
            batches.append([draw.position for draw in batch])
            assert {draw.epoch for draw in batch} == {position // epoch}
            position += 1
    return batches[:count]


def test_each_epoch_has_every_item_once_in_another_order():
    batches = take(3 * PER_EPOCH, COUNT, BATCH, seed=0)
    epochs = [list(itertools.chain(*batches[e * PER_EPOCH : (e + 1) * PER_EPOCH])) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [len(batch) for batch in batches[:PER_EPOCH]] == [4, 4, 4, 4, 4, 2]
    assert len(SeededBatches(COUNT, BATCH, 0)) == PER_EPOCH


def test_the_seed_decides_the_order():
    assert take(8, COUNT, BATCH, seed=1) == take(8, COUNT, BATCH, seed=1)
    assert take(8, COUNT, BATCH, seed=1) != take(8, COUNT, BATCH, seed=2)


@pytest.mark.parametrize("done", [1, 5, 6, 7, 12, 17])
def test_beginning_later_gives_what_would_have_come(done):
    assert len(list(SeededBatches(COUNT, BATCH, 3, done=lambda: done))) == PER_EPOCH  # as len() promises
    assert take(9, COUNT, BATCH, seed=3, done=done) == take(done + 9, COUNT, BATCH, seed=3)[done:]


@pytest.mark.parametrize(("count", "world"), [(22, 2), (23, 2), (22, 3), (2, 4)])
def test_ranks_share_an_epoch_in_equal_numbers_of_batches(count, world):
    ranks = [list(SeededBatches(count, BATCH, 0, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1 and len(ranks[0]) == len(
        SeededBatches(count, BATCH, 0, 0, world)
    )
    drawn = [draw.position for batches in ranks for batch in batches for draw in batch]
    assert set(drawn) == set(range(count))
    assert len(drawn) < count + world  # padded up to the next multiple of world, no further


SHARDS = np.repeat(np.arange(10), 7)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_are_gone_through_one_after_another_by_each_rank_its_part(world):
    """Without a buffer, items come shard by shard; each epoch has every item, and the shards in another order."""
    epochs = []
    for epoch in range(2):
        ranks = []
        for rank in range(world):
            order = SeededBatches(70, 4, 1, rank, world, shards=SHARDS)
            order.done = lambda order=order, epoch=epoch: epoch * len(order)
            ranks.append([draw.position for batch in order for draw in batch])
            way = [int(shard) for shard, _ in itertools.groupby(SHARDS[ranks[-1]])]
            assert len(set(way)) == len(way) <= math.ceil(10 / world) + 1
        assert len({len(rank) for rank in ranks}) == 1
        assert {position for rank in ranks for position in rank} == set(range(70))
        epochs.append(ranks)
    assert epochs[0] != epochs[1]


def test_a_buffer_mixes_neighbouring_shards_and_no_more(buffer=20):
    plain = [draw.position for batch in SeededBatches(70, 4, 1, shards=SHARDS) for draw in batch]
    mixed = [draw.position for batch in SeededBatches(70, 4, 1, shards=SHARDS, buffer=buffer) for draw in batch]
    moved = [mixed.index(position) - at for at, position in enumerate(plain)]
    assert sorted(mixed) == sorted(plain) and 5 < max(map(abs, moved)) <= buffer
    assert len({int(SHARDS[position]) for position in mixed[:8]}) >= 2


@pytest.mark.parametrize("kind", [{"shards": SHARDS, "buffer": 9}, {"buckets": SHARDS % 3}])
def test_shards_and_buckets_go_on_where_they_were(kind):
    whole = take(40, 70, BATCH, seed=3, **kind)
    for done in (1, 17, 18, 25):
        assert take(8, 70, BATCH, seed=3, done=done, **kind) == whole[done : done + 8]
    assert take(8, 70, BATCH, seed=4, **kind) != whole[:8]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_has_the_same_bucket_at_the_same_time(world):
    buckets = np.random.default_rng(0).integers(0, 3, 70)
    ranks = [
        [[draw.position for draw in batch] for batch in SeededBatches(70, 4, 0, rank, world, buckets=buckets)]
        for rank in range(world)
    ]
    for together in zip(*ranks, strict=True):
        assert len({int(buckets[position]) for batch in together for position in batch}) == 1
        assert len({len(batch) for batch in together}) == 1
    drawn = [position for rank in ranks for batch in rank for position in batch]
    assert set(drawn) == set(range(70)) and len(drawn) < 70 + 3 * world
    assert len(SeededBatches(70, 4, 0, 0, world, buckets=buckets)) == len(ranks[0])


@pytest.mark.parametrize("accumulate", [2, 4, 30])
@pytest.mark.parametrize(
    "kind", [{}, {"shards": SHARDS, "buffer": 9}, {"buckets": SHARDS % 3}], ids=["plain", "shards", "buckets"]
)
def test_every_step_of_several_micro_batches_is_made_of_as_many_items(kind, accumulate):
    """Also where the data set, of 70, is smaller than a step: 30 micro-batches of 4."""
    for world in (1, 2):
        ranks = [SeededBatches(70, BATCH, 0, rank, world, accumulate=accumulate, **kind) for rank in range(world)]
        assert {len(order) % accumulate for order in ranks} == {0} and len({len(order) for order in ranks}) == 1
        batches = [list(order) for order in ranks]
        assert {len(batch) for own in batches for batch in own} == {BATCH}
        assert {draw.position for own in batches for batch in own for draw in batch} == set(range(70))
    done = take(50, 70, BATCH, seed=3, accumulate=accumulate, **kind)
    assert take(9, 70, BATCH, seed=3, done=17, accumulate=accumulate, **kind) == done[17:26]


def test_full_batches_are_those_of_before_but_for_what_fills_them_and_ranks_draw_what_one_would():
    plain, full = take(12, COUNT, BATCH, seed=0), take(12, COUNT, BATCH, seed=0, accumulate=4)
    for first, last in ((0, 5), (6, 11)):
        plain[last] = plain[last] + plain[first][:2]
    assert full == plain
    one = SeededBatches(23, 2 * BATCH, 0, accumulate=3)
    two = [SeededBatches(23, BATCH, 0, rank, 2, accumulate=3) for rank in range(2)]
    for together, *parts in zip(one, *two, strict=True):
        assert sorted(together) == sorted(parts[0] + parts[1])


@pytest.fixture
def data(base, write_folder, tmp_path) -> ControlData:
    data = ControlData(
        write_folder(COUNT, side=8), 8, batch_size=BATCH, heldout=0, seed=5, cache_folder=tmp_path / "cache"
    )
    data.prepare(base)
    return data


class Toy(LightningModule):
    """A linear model that draws noise in each step and writes down which items it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append(batch.index.tolist())
        torch.manual_seed(int(self.trainer.fit_loop.epoch_loop.batch_progress.state_dict()["total"]["ready"]))
        return ((self.layer(batch.latents.mean((2, 3))) - torch.rand(len(batch.index), 1)) ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class StopAfter(Callback):
    """Ends a run after some micro-batches, as Ctrl-C does."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        assert isinstance(pl_module, Toy)
        if len(pl_module.seen) == self.batches:
            trainer.should_stop = True


def fit(
    data: ControlData,
    length: dict[str, Any],
    resume: Path | None = None,
    callbacks: list[Callback] | None = None,
    accumulate: int = 1,
) -> Toy:
    model = Toy()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks or ()),
        callbacks=callbacks,
        use_distributed_sampler=False,
        accumulate_grad_batches=accumulate,
        **length,
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=False)
    return model


LENGTHS = [{"max_epochs": 3}, {"max_steps": 18, "max_epochs": -1}]


def assert_same(resumed: Toy, whole: Toy, done: int) -> None:
    assert resumed.seen == whole.seen[done:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("by", ["max_epochs", "max_steps"])
@pytest.mark.parametrize("accumulate", [1, 2, 4])  # with 4, the second step goes on into the next epoch
def test_resuming_after_a_step_is_the_same_as_never_stopping(data, tmp_path, by, accumulate):
    """Checkpoints written after an optimizer step: in the middle of an epoch, and after its last micro-batch."""
    per_epoch = math.ceil(PER_EPOCH / accumulate)
    length = {"max_epochs": 3} if by == "max_epochs" else {"max_steps": 3 * per_epoch, "max_epochs": -1}
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(data, length, callbacks=[saver], accumulate=accumulate)
    assert len(whole.seen) == 3 * per_epoch * accumulate
    for step in (1, per_epoch, per_epoch + 1, 2 * per_epoch, 3 * per_epoch - 1):
        resumed = fit(data, length, tmp_path / f"step={step}.ckpt", accumulate=accumulate)
        assert_same(resumed, whole, step * accumulate)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_steps_are_whole_where_a_phase_accumulates_more_than_an_epoch_has(data):
    class Accumulate(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            ends.append(len(cast(Toy, pl_module).seen))

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.accumulate_grad_batches = PER_EPOCH + 2

    ends: list[int] = []
    data.accumulations = [PER_EPOCH + 2]
    whole = fit(data, {"max_epochs": 3}, callbacks=[Accumulate()])
    assert ends == [1, 2, 8, 16, 24] and {len(batch) for batch in whole.seen} == {BATCH}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("length", LENGTHS, ids=["max_epochs", "max_steps"])
def test_resuming_from_the_end_of_an_epoch(data, tmp_path, length):
    """The checkpoint that Lightning writes after the last batch's hooks, when the epoch is over."""
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_on_train_epoch_end=True, every_n_epochs=1, save_top_k=-1)
    whole = fit(data, length, callbacks=[saver])
    for epoch in (0, 1):
        assert_same(fit(data, length, tmp_path / f"epoch={epoch}.ckpt"), whole, (epoch + 1) * PER_EPOCH)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("batches", [3, 6, 8])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(data, tmp_path, batches):
    """Stopped and saved, resumed and stopped again, resumed to the end."""
    whole = fit(data, LENGTHS[1])
    parts: list[Toy] = []
    seen: list[list[int]] = []
    resume = None
    while len(seen) < len(whole.seen):
        saver = ModelCheckpoint(tmp_path / str(len(parts)), "last", every_n_train_steps=1)
        parts.append(fit(data, LENGTHS[1], resume, [StopAfter(batches), saver]))
        seen += parts[-1].seen
        resume = Path(saver.best_model_path)
    assert len(parts) > 2 and seen == whole.seen
    assert torch.equal(parts[-1].layer.weight, whole.layer.weight)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_workers_that_read_ahead_do_not_change_the_order(data, tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1)
    whole = fit(data, LENGTHS[0], callbacks=[saver])
    data.num_workers = 1
    assert fit(data, LENGTHS[0]).seen == whole.seen
    assert_same(fit(data, LENGTHS[0], tmp_path / "step=8.ckpt"), whole, 8)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("settings", [{"buckets": 16, "random_flip": True}, {"shuffle_buffer": 5}])
def test_a_run_on_shards_goes_on_in_mid_epoch_with_the_very_next_batch(base, write_folder, tmp_path, settings):
    items = read_folder(write_folder(COUNT, side=64))
    for item in items[::2]:
        for file in (item.source, item.target):
            Image.open(file).resize((40, 64)).save(file)
    write_shards(items, tmp_path / "shards", items_a_shard=4)
    usual = {"batch_size": BATCH, "heldout": 0, "cache_folder": tmp_path / "cache", "reader": Shards()}
    data = ControlData(tmp_path / "shards", 64, **usual | settings)
    data.prepare(base)
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    whole = fit(data, LENGTHS[1], callbacks=[saver])
    assert len(whole.seen) == 18
    assert_same(fit(data, LENGTHS[1], tmp_path / "step=9.ckpt"), whole, 9)
