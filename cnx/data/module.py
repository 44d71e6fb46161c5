"""From a folder of images to training batches and held-out items."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import rich
import torch
from jaxtyping import Float, Int, UInt8
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnx.data.cache import Rows, cache_latents, cache_text
from cnx.data.folder import OR_SKIP, Item, OnError, check_limit, check_resolution, load_control, load_pair, read_folder
from cnx.data.order import SeededBatches
from cnx.data.split import Digest, digest_all, is_held_out, position
from cnx.data.synthetic import Scenes, generate
from cnx.errors import InputError

if TYPE_CHECKING:
    from cnx.base import Base


class Batch(NamedTuple):
    """A micro-batch: latents and embedding of target and prompt, control map in [0, 1], position in the data set."""

    latents: Float[Tensor, "b 4 h w"]
    text: Float[Tensor, "b n d"]
    control: Float[Tensor, "b 3 H W"]
    index: Int[Tensor, " b"]  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.index, unused)


@dataclass
class HeldOut:
    """Items that are never trained on: positions in the data set, prompts, images in [0, 1], latents, embeddings."""

    index: list[int]
    prompts: list[str]
    control: Float[Tensor, "n 3 H W"]
    target: Float[Tensor, "n 3 H W"]
    latents: Float[Tensor, "n 4 h w"]
    text: Float[Tensor, "n l d"]


class Pairs(Dataset[Batch]):
    """Training examples by position: the map from its file, latents and embedding (float32) from the cache."""

    def __init__(
        self, items: Sequence[Item], index: Sequence[int], latents: Rows, text: Rows, text_row: Sequence[int], side: int
    ) -> None:
        self.items, self.index, self.latents = items, index, latents
        self.text, self.text_row, self.side = text, text_row, side

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Batch:
        at = self.index[number]
        control = to_tensor(load_control(self.items[at], self.side))
        return Batch(self.latents[at], self.text[self.text_row[at]], control, torch.tensor(at))


class Resumable(DataLoader[Batch]):
    """A loader that Lightning knows to be resumable: its order follows from the trainer's own count of batches."""

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        pass


class ControlData(LightningDataModule):
    """Training batches and held-out items of a data set folder, or of synthetic scenes written to that folder first.

    Args:
        root: the folder, in the Fill50K layout (`read_folder`).
        resolution: side in pixels of maps and targets, a multiple of 8.
        limit: use the first `limit` items only.
        on_error: `raise` stops at a missing, damaged or mismatched image; `skip` leaves such items out and lists them.
        batch_size: items in a micro-batch on each device.
        num_workers: processes that read maps; 0 reads them in the main process. Batches are the same for any number.
        heldout: fraction of items, chosen by content, that are never trained on.
        seed: of the data order.
        cache: folder for latents and prompt embeddings, shared by all runs.
        scenes: synthetic scenes to write into `root` at `resolution` first, or None to read what is there.
    """

    def __init__(
        self,
        root: str | Path,
        resolution: int,
        limit: int | None = None,
        on_error: OnError = "raise",
        batch_size: int = 8,
        num_workers: int = 0,
        heldout: float = 0.02,
        seed: int = 0,
        cache: str | Path = "cache",
        scenes: Scenes | None = None,
    ) -> None:
        super().__init__()
        check_resolution(resolution)
        check_limit(limit)
        if on_error not in ("raise", "skip"):
            raise InputError(f"data.on_error={on_error}: no such choice; use raise or skip")
        if batch_size < 1:
            raise InputError(f"data.batch_size={batch_size}: must be at least 1")
        if not 0 <= heldout < 1:
            raise InputError(f"data.heldout={heldout}: must be a fraction from 0 up to, but not including, 1")
        self.root, self.resolution, self.limit = Path(root), resolution, limit
        self.on_error: OnError = on_error
        self.batch_size, self.num_workers, self.fraction, self.seed = batch_size, num_workers, heldout, seed
        self.cache, self.scenes = Path(cache), scenes

        self.items: list[Item] = []
        self.skipped: list[str] = []
        self.content: str | None = None

    def prepare(self, base: "Base") -> None:
        """Read the folder, split it, and encode images and prompts with `base` unless an earlier run has done so.

        Sets `items` (all that could be read), `train_items`, `heldout_items` (by content digest), `skipped` (reasons),
        `content` (sha256 of the data set), `null_text` (embedding "1 n d" of the empty prompt).

        Raises:
            InputError: bad input of any kind; a split that leaves nothing to train on.
        """
        folder = self.root
        if self.scenes is not None:
            count = self.scenes.count if self.limit is None else min(self.limit, self.scenes.count)
            folder = generate(self.scenes, self.root, self.resolution, count=count)
        listed = read_folder(folder, self.limit, self.on_error)

        items: list[Item] = []
        digests: list[Digest] = []
        skipped: list[str] = []
        for item, found in zip(listed, digest_all(listed), strict=True):
            if isinstance(found, Digest):
                items.append(item)
                digests.append(found)
            elif self.on_error == "raise":
                raise InputError(f"{found}{OR_SKIP}")
            else:
                skipped.append(str(found))
        self._check_split(folder, digests)
        latents, unreadable = cache_latents(base, items, digests, self.resolution, self.cache, self.on_error)
        skipped += unreadable.values()
        good = [at for at in range(len(items)) if at not in unreadable]
        self._check_split(folder, [digests[at] for at in good])
        text, row_of = cache_text(base, (item.prompt for item in items), self.cache)

        heldout = {at for at in good if is_held_out(digests[at].target, self.fraction)}
        self._train = [at for at in good if at not in heldout]
        self._heldout = sorted(heldout, key=lambda at: (digests[at].target, digests[at].item, at))
        self._latents, self._text = latents, text
        self._text_row = [row_of[item.prompt] for item in items]
        self.items, self.skipped = items, skipped
        self.train_items = [items[at] for at in self._train]
        self.heldout_items = [items[at] for at in self._heldout]
        self.null_text: Float[Tensor, "1 n d"] = text[[row_of[""]]]
        self.content = hashlib.sha256("".join(digest.item for digest in digests).encode()).hexdigest()
        if skipped:
            # On the terminal whatever the logging is set to: who asked to skip wants to know what.
            console = rich.get_console()
            console.print(f"Skipped {len(skipped)} of {len(listed)} items of {folder}:", markup=False, soft_wrap=True)
            more = [f"and {len(skipped) - 5} more, listed in the run folder's skipped.txt"] if len(skipped) > 5 else []
            for line in [*skipped[:5], *more]:
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)

    def _check_split(self, folder: Path, digests: Sequence[Digest]) -> None:
        held = sum(is_held_out(digest.target, self.fraction) for digest in digests)
        if held == len(digests):
            remedy = "lower data.heldout or add images" if held else "no image could be read: mend the images"
            raise InputError(f"{folder}: 0 training items of {len(digests)} (data.heldout={self.fraction}); {remedy}")
        if self.fraction > 0 and held == 0:
            nearest = min(position(digest.target) for digest in digests)
            enough = math.floor(nearest * 100 + 1) / 100
            raise InputError(
                f"{folder}: 0 held-out items of {len(digests)} (data.heldout={self.fraction});"
                f" use data.heldout={enough:g} or more, or add images"
            )

    def heldout(self, n: int) -> HeldOut:
        """Read the first `n` held-out items by content digest, or all of them if there are fewer.

        Raises:
            InputError: nothing is held out.
        """
        chosen = self._heldout[:n]
        if not chosen:
            raise InputError(
                f"{self.root}: 0 held-out items beside {len(self._train)} training items"
                f" (data.heldout={self.fraction}, {n} wanted); set data.heldout to a fraction such as 0.02"
            )
        pairs = [load_pair(self.items[at], self.resolution) for at in chosen]
        return HeldOut(
            index=chosen,
            prompts=[self.items[at].prompt for at in chosen],
            control=torch.stack([to_tensor(control) for control, _ in pairs]),
            target=torch.stack([to_tensor(target) for _, target in pairs]),
            latents=self._latents[chosen],
            text=self._text[[self._text_row[at] for at in chosen]],
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Give the loader of training batches; with a trainer attached it goes on after the batches trained so far."""
        trainer = self.trainer
        pairs = Pairs(self.items, self._train, self._latents, self._text, self._text_row, self.resolution)
        batches = SeededBatches(
            len(pairs),
            self.batch_size,
            self.seed,
            rank=0 if trainer is None else trainer.global_rank,
            world=1 if trainer is None else trainer.world_size,
            done=self._count_done,
        )
        return Resumable(
            pairs,
            batch_sampler=batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: DataLoader draws a seed for its workers at the beginning of each pass, and a
            # resumed run, which begins one pass more, must not move the global generator by it.
            generator=torch.Generator(),
        )

    def _count_done(self) -> int:
        """Micro-batches trained on since step 0; the trainer keeps the count in its checkpoints."""
        if self.trainer is None:
            return 0
        # `processed`, unlike `completed`, counts the batch after which a checkpoint is being written.
        return self.trainer.fit_loop.epoch_loop.batch_progress.state_dict()["total"]["processed"]


def to_tensor(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    """Turn an 8-bit image into float32 in [0, 1], channels first."""
    return torch.tensor(image).permute(2, 0, 1).float() / 255
