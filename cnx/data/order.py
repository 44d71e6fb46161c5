"""The order of the training data: a function of seed and micro-batch number, without state of its own."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


class SeededBatches(Sampler[list[int]]):
    """A batch sampler whose micro-batch number k is always the same, wherever a run was stopped and resumed.

    Epoch e is the permutation of range(count) drawn from (seed, e); each rank takes every world-th index of it and
    cuts them into batches (the last of an epoch may be smaller). When `world` does not divide `count`, up to
    world - 1 indices come twice in an epoch, so that all ranks have the same number of batches.

    Each pass yields len(self) batches, one epoch's worth, beginning at micro-batch number `done()`. Asking at the
    beginning of each pass how far training is, instead of counting passes, makes resuming in the middle of an epoch
    the same as not having stopped: Lightning takes what is left of the epoch and begins a new pass for the next one.
    Nothing depends on how often Lightning begins a pass, or on how far ahead worker processes have read.

    Args:
        count: number of items.
        batch_size: items in a micro-batch on each rank.
        seed: not negative.
        rank, world: this process among all that train together.
        done: gives the number of micro-batches that this rank has been trained on since step 0 of the run.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        done: Callable[[], int] = lambda: 0,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world, self.done = rank, world, done

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.count / self.world) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        start = self.done()
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for number in range(start, start + len(self)):
            wanted, offset = divmod(number, len(self))
            if wanted != epoch:
                epoch, order = wanted, self._order(wanted)
            yield order[offset * self.batch_size : (offset + 1) * self.batch_size].tolist()

    def _order(self, epoch: int) -> np.ndarray:
        """This rank's indices in the order of an epoch."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        padded = np.resize(order, math.ceil(self.count / self.world) * self.world)
        return padded[self.rank :: self.world]
