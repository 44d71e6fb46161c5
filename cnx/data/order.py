"""The order of training data: a function of seed and micro-batch number, without state of its own."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """An item's position among the training items, and the epoch that it is drawn in, from 0."""

    position: int
    epoch: int


class SeededBatches(Sampler[list[Draw]]):
    """A batch sampler whose micro-batch number k is always the same, wherever a run was stopped and resumed.

    Epoch e is the permutation of range(count) drawn from (seed, e); each rank takes every world-th index of it and
    cuts them into batches (the last of an epoch may be smaller). When `world` does not divide `count`, up to
    world - 1 indices come twice in an epoch, so that all ranks have the same number of batches.

    With `shards`, an epoch goes through whole shards in an order drawn from (seed, e); each rank takes a part of that
    way, the parts being of one length, and its items change places within a buffer: an item comes up to `buffer`
    places late. So disks and networks read on, where a permutation of everything would make them seek.

    With `buckets`, each batch is of one bucket, the batches of an epoch come in an order drawn from (seed, e), and all
    ranks have the same bucket at the same time. The last batch of a bucket may be smaller.

    With `accumulate` above 1 every optimizer step is made of as many items. A batch that would be smaller is filled up
    with the first items of its epoch, or of its bucket, which come twice then. A pass goes on into the next epoch until
    its last step is whole, since Lightning makes a step of whatever is left at the end of a pass.

    Each pass yields len(self) batches, an epoch's worth, beginning at micro-batch number `done()`. Asking at the
    beginning of each pass how far training is, instead of counting passes, makes resuming in the middle of a pass
    the same as not having stopped: Lightning takes what is left of the pass and begins a new one after it.
    Nothing depends on how often Lightning begins a pass, or on how far ahead worker processes have read.

    Args:
        count: number of items.
        batch_size: items in a micro-batch on each rank.
        seed: not negative.
        rank, world: this process among all that train together.
        done: gives the number of micro-batches that this rank has been trained on since step 0 of the run.
        shards: the shard that each item lies in, or None for items that lie by themselves.
        buffer: items among which those of shards are shuffled.
        buckets: the bucket that each item belongs to, or None if all are of one size.
        accumulate: micro-batches in an optimizer step; of a run whose phases change that, a multiple of each.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        done: Callable[[], int] = lambda: 0,
        shards: Int[np.ndarray, " n"] | None = None,
        buffer: int = 1,
        buckets: Int[np.ndarray, " n"] | None = None,
        accumulate: int = 1,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world, self.done = rank, world, done
        self.shards, self.buffer, self.buckets = shards, buffer, buckets
        self.accumulate = accumulate
        # What a rank's part is a multiple of.
        self._unit = 1 if accumulate == 1 else batch_size
        sizes = [count] if buckets is None else np.bincount(buckets).tolist()
        self._epoch = sum(math.ceil(math.ceil(size / world) / batch_size) for size in sizes)

    def __len__(self) -> int:
        return math.ceil(self._epoch / self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        start = self.done()
        epoch, batches = -1, []
        for number in range(start, start + len(self)):
            wanted, offset = divmod(number, self._epoch)
            if wanted != epoch:
                epoch, batches = wanted, self._batches(wanted)
            yield [Draw(position, epoch) for position in batches[offset].tolist()]

    def _batches(self, epoch: int) -> list[Int[np.ndarray, " b"]]:
        """This rank's batches of an epoch: views of one array."""
        if self.buckets is None:
            return self._cut(self._order(epoch))
        order = self._order(epoch, whole=True)
        order = order[np.argsort(self.buckets[order], kind="stable")]
        parts = np.split(order, np.cumsum(np.bincount(self.buckets))[:-1])
        batches = [batch for part in parts for batch in self._cut(self._share(part))]
        return [batches[at] for at in np.random.default_rng((self.seed, epoch, 1)).permutation(len(batches))]

    def _order(self, epoch: int, whole: bool = False) -> Int[np.ndarray, " m"]:
        """The indices of an epoch in order: this rank's, or all of them."""
        random = np.random.default_rng((self.seed, epoch))
        if self.shards is None:
            order = random.permutation(self.count)
            return order if whole else self._share(order)
        place = random.permutation(int(self.shards.max()) + 1)  # when each shard's turn is
        order = np.argsort(place[self.shards], kind="stable")
        if not whole:
            part = self._rounded_up(self.count) // self.world
            order = np.resize(order, part * self.world)[self.rank * part : (self.rank + 1) * part]
        return order[np.argsort(np.arange(len(order)) + random.uniform(0, self.buffer, len(order)))]

    def _share(self, order: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """Every world-th index, as many for each rank."""
        return np.resize(order, self._rounded_up(len(order)))[self.rank :: self.world]

    def _rounded_up(self, count: int) -> int:
        """How many indices all ranks together take of `count`."""
        together = self.world * self._unit
        return math.ceil(count / together) * together

    def _cut(self, order: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " b"]]:
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
