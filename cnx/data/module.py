"""From a data set to training batches and held-out items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import rich
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnx.condition import Condition, parts_of
from cnx.data.buckets import Size, bucket_sizes, nearest_bucket
from cnx.data.cache import IMAGES_AT_ONCE, Cached, Rows, cache_latents, cache_text
from cnx.data.folder import Item, OnError, check_limit, check_resolution, load_control, load_pair
from cnx.data.index import BAD, content, index_items, positions, sorted_by_content, why_bad
from cnx.data.items import Chosen, Fill50KLayout, Items, Reader
from cnx.data.order import Draw, SeededBatches
from cnx.data.several import put_together
from cnx.data.synthetic import Scenes, generate
from cnx.errors import InputError

if TYPE_CHECKING:
    from cnx.base import Base


class Batch(NamedTuple):
    """A micro-batch: latents and embedding of target and prompt, control in [0, 1], position in the data set.

    control: 3 channels for each control map of a picture.
    """

    latents: Float[Tensor, "b 4 h w"]
    text: Float[Tensor, "b n d"]
    control: Float[Tensor, "b m H W"]
    index: Int[Tensor, " b"]  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.index, unused)


class Unencoded(NamedTuple):
    """A micro-batch as it is read where latents, or latents and embeddings, are not cached: with what they come from.

    `latents` is the target, 8-bit RGB, where it is of integers; `text` is the prompts where it is a list.
    """

    latents: Float[Tensor, "b 4 h w"] | UInt8[Tensor, "b 3 H W"]
    text: Float[Tensor, "b n d"] | list[str]
    control: Float[Tensor, "b m H W"]
    index: Int[Tensor, " b"]  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclass
class HeldOut:
    """Items that are never trained on: positions in the data set, prompts, images in [0, 1], latents, embeddings."""

    index: list[int]
    prompts: list[str]
    control: Float[Tensor, "n m H W"]
    target: Float[Tensor, "n 3 H W"]
    latents: Float[Tensor, "n 4 h w"]
    text: Float[Tensor, "n l d"]


@dataclass
class CachedRows:
    """Rows of the cache, and the row of each item of the data set; -1 where an item has none."""

    rows: Rows
    of: Int[np.ndarray, " n"]

    def __getitem__(self, index: Sequence[int]) -> Float[Tensor, "..."]:
        return self.rows[self.of[index].tolist()]


@dataclass
class Pairs(Dataset[Batch | Unencoded]):
    """Training examples, a batch at a time: maps from their files, latents and embeddings (float32) from the cache.

    Attributes:
        index: the training items' numbers in the data set.
        sizes, bucket: the sizes of the buckets, and the bucket of each item of the data set.
        latents: of each bucket; None where they are not cached, and the target is read instead.
        text: None where it is not cached, and prompts are given instead.
        crop, flip, seed: random crops and flips, the same of map and target, drawn afresh in each epoch.
    """

    items: Items
    index: Int[np.ndarray, " m"]
    sizes: list[Size]
    bucket: Int[np.ndarray, " n"]
    latents: list[CachedRows] | None
    text: CachedRows | None
    crop: bool = False
    flip: bool = False
    seed: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, draws: list[Draw]) -> Batch | Unencoded:
        chosen = [int(self.index[draw.position]) for draw in draws]
        items = [self.items[at] for at in chosen]
        bucket = int(self.bucket[chosen[0]])  # a batch is of one bucket
        size = self.sizes[bucket]
        index = torch.tensor(chosen)
        text = [item.prompt for item in items] if self.text is None else self.text[chosen]
        if self.latents is not None:
            latents = self.latents[bucket][chosen]
            maps = [load_control(item, *size) for item in items]
        else:
            maps, targets = zip(
                *(self._load(*each, size) for each in zip(items, chosen, draws, strict=True)), strict=True
            )
            latents = torch.from_numpy(np.stack(targets)).permute(0, 3, 1, 2)
        control = torch.stack([to_tensor(control) for control in maps])
        if isinstance(text, list) or not latents.is_floating_point():
            return Unencoded(latents, text, control, index)
        return Batch(latents, text, control, index)

    def _load(
        self, item: Item, at: int, draw: Draw, size: Size
    ) -> tuple[UInt8[np.ndarray, "h w m"], UInt8[np.ndarray, "h w 3"]]:
        random = np.random.default_rng((self.seed, draw.epoch, at))
        top, left = random.random(2)
        control, target = load_pair(item, *size, place=(top, left) if self.crop else (0.5, 0.5))
        if self.flip and random.random() < 0.5:
            return np.ascontiguousarray(control[:, ::-1]), np.ascontiguousarray(target[:, ::-1])
        return control, target


class Resumable(DataLoader[Batch | Unencoded]):
    """A loader that Lightning knows to be resumable: its order follows from the trainer's own count of batches."""

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        pass


class ControlData(LightningDataModule):
    """Training batches and held-out items of a data set, or of synthetic scenes written to a folder first.

    Args:
        root: where the data set is, as its `reader` wants it: a folder, a name, a pattern. A list of data sets of the
            same pictures, one for each condition, gives each picture the maps of all.
        resolution: side in pixels of maps and targets, a multiple of 8.
        limit: use the first `limit` items only.
        on_error: `raise` stops at a missing, damaged or mismatched image; `skip` leaves such items out and lists them.
        batch_size: items in a micro-batch on each device.
        num_workers: processes that read maps; 0 reads them in the main process. Batches are the same for any number.
        heldout: fraction of items, chosen by content, that are never trained on.
        seed: of the data order, and of crops and flips.
        cache: what is encoded once, and kept: `all`; `latents`, with prompts embedded in each step; `off`, with
            pictures encoded in each step, too.
        cache_folder: folder for the index, latents and prompt embeddings, shared by all runs.
        scenes: synthetic scenes to write into `root` at `resolution` first, with the maps of each of their conditions,
            or None to read what is there.
        reader: reads the data set; None is the Fill50K layout.
        buckets: sides of pictures that are not square are multiples of it (`bucket_sizes`), and each batch is of one
            size; None crops all to squares. Held-out items are squares in any case.
        random_crop, random_flip: crop pictures at a random place instead of the centre; mirror half of them. Training
            pictures are encoded in each step then.
        shuffle_buffer: items among which those of shards are shuffled.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        resolution: int,
        limit: int | None = None,
        on_error: OnError = "raise",
        batch_size: int = 8,
        num_workers: int = 0,
        heldout: float = 0.02,
        seed: int = 0,
        cache: Cached | bool = "all",
        cache_folder: str | Path = "cache",
        scenes: Scenes | None = None,
        reader: Reader | None = None,
        buckets: int | None = None,
        random_crop: bool = False,
        random_flip: bool = False,
        shuffle_buffer: int = 4096,
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
        cache = "off" if cache is False else cache  # YAML's word for it
        if cache not in ("off", "latents", "all"):
            raise InputError(
                f"data.cache={cache}: no such choice; use off, latents or all (its place: data.cache_folder)"
            )
        if shuffle_buffer < 1:
            raise InputError(f"data.shuffle_buffer={shuffle_buffer}: must be at least 1")
        self.roots = [str(root)] if isinstance(root, str | Path) else [str(each) for each in root]
        if not self.roots:
            raise InputError("data.root=[]: names no data set; give one, or one for each condition")
        if scenes is not None and len(self.roots) > 1:
            raise InputError(f"data.root={self.roots}: a drawn set is written to one folder; give one")
        self.root, self.resolution, self.limit = self.roots[0], resolution, limit
        self.on_error: OnError = on_error
        self.batch_size, self.num_workers, self.fraction, self.seed = batch_size, num_workers, heldout, seed
        self.cache, self.cache_folder = cache, Path(cache_folder)
        self.scenes, self.reader = scenes, reader or Fill50KLayout()
        self.crop, self.flip, self.shuffle_buffer = random_crop, random_flip, shuffle_buffer
        # Squares first: what held-out items are.
        self.buckets = buckets
        self.sizes = [Size(resolution, resolution)]
        if buckets is not None:
            self.sizes += [size for size in bucket_sizes(resolution, buckets) if size not in self.sizes]

        # Of phases to come, micro-batches in an optimizer step: an epoch is made of whole steps of each.
        self.accumulations: Sequence[int] = ()
        self.skipped: list[str] = []
        self.content: str | None = None

    def prepare(self, base: "Base") -> None:
        """Read the data set, split it, and encode images and prompts with `base` unless an earlier run has done so.

        Sets `items` (all that are listed), `train_items`, `heldout_items` (by content digest), `skipped` (reasons),
        `content` (sha256 of the data set), `null_text` (embedding "1 n d" of the empty prompt).

        Raises:
            InputError: bad input of any kind; a split that leaves nothing to train on.
        """
        roots = self.roots if self.scenes is None else self._write_scenes(self.scenes)
        root = roots[0]
        sets = [self.read(each) for each in roots]
        indexed = [index_items(items, self.cache_folder, self.on_error == "raise") for items in sets]
        self.items, records = put_together(roots, sets, indexed)
        bad = np.flatnonzero(records["state"] == BAD)
        self.skipped = [
            next(why_bad(items[at]) for items, own in zip(sets, indexed, strict=True) if own["state"][at] == BAD)
            for at in map(int, bad)
        ]
        self._check_split(root, records[records["state"] != BAD] if len(bad) else records)

        good = records["state"] != BAD
        held = good & (positions(records["target"]) < self.fraction)
        self._train = np.flatnonzero(good & ~held)
        self._heldout = sorted_by_content(records, np.flatnonzero(held))
        self.train_items = Chosen(self.items, self._train)
        self.heldout_items = Chosen(self.items, np.array(self._heldout, dtype=np.int64))
        self.content = content(records)
        self._bucket = self._assign(records, base)
        self._encode(base, records, np.flatnonzero(good), held)
        if self.skipped:
            # On the terminal whatever the logging is set to: who asked to skip wants to know what.
            console, count = rich.get_console(), len(self.skipped)
            console.print(f"Skipped {count} of {len(records)} items of {root}:", markup=False, soft_wrap=True)
            more = [f"and {count - 5} more, listed in the run folder's skipped.txt"] if count > 5 else []
            for line in [*self.skipped[:5], *more]:
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)

    @property
    def maps(self) -> int:
        """How many control maps each picture has."""
        return len(self.roots) if self.scenes is None else len(_one_by_one(self.scenes))

    def _write_scenes(self, scenes: Scenes) -> list[str]:
        """Write the scenes, and give the folder to read for each of their conditions."""
        count = scenes.count if self.limit is None else min(self.limit, scenes.count)
        return [str(generate(each, self.root, self.resolution, count=count)) for each in _one_by_one(scenes)]

    def read(self, root: str | None = None) -> Items:
        """List the items at `root`, or at the data's own, as `reader` does, without looking into their images."""
        return self.reader(root or self.root, self.limit, self.on_error, self.cache_folder)

    def _check_split(self, root: str, records: Shaped[np.ndarray, " n"]) -> None:
        places = positions(records["target"])
        held = int((places < self.fraction).sum())
        if held == len(records):
            remedy = "lower data.heldout or add images" if held else "no image could be read: mend the images"
            raise InputError(f"{root}: 0 training items of {len(records)} (data.heldout={self.fraction}); {remedy}")
        if self.fraction > 0 and held == 0:
            enough = math.floor(float(places.min()) * 100 + 1) / 100
            raise InputError(
                f"{root}: 0 held-out items of {len(records)} (data.heldout={self.fraction});"
                f" use data.heldout={enough:g} or more, or add images"
            )

    def _assign(self, records: Shaped[np.ndarray, " n"], base: "Base") -> Int[np.ndarray, " n"]:
        """The bucket of each item."""
        bucket = np.zeros(len(records), dtype=np.uint8)
        if self.buckets is None:
            return bucket
        step = 8 * 2 ** (len(base.unet.config["block_out_channels"]) - 1)
        if self.buckets % step:
            raise InputError(f"data.buckets={self.buckets}: this base takes sides that are multiples of {step}")
        heights, widths = records["height"][self._train], records["width"][self._train]
        bucket[self._train] = nearest_bucket(heights, widths, self.sizes)
        return bucket

    def _encode(
        self,
        base: "Base",
        records: Shaped[np.ndarray, " n"],
        good: Int[np.ndarray, " m"],
        held: Shaped[np.ndarray, " n"],
    ) -> None:
        """Fill the cache with what is to be in it."""
        self._base = base
        self._latents: list[CachedRows] | None = None
        self._text: CachedRows | None = None
        afresh = self.crop or self.flip
        if self.cache != "off":
            if afresh:
                rich.get_console().print(
                    "Random crops or flips: training pictures are encoded in each step, not cached"
                )
            self._latents = []
            for number, size in enumerate(self.sizes):
                wanted = (
                    good[self._bucket[good] == number]
                    if not afresh
                    else np.array(self._heldout[: 0 if number else None], dtype=np.int64)
                )
                rows, found = cache_latents(
                    base, Chosen(self.items, wanted), records["target"][wanted], size, self.cache_folder
                )
                of = np.full(len(records), -1)
                of[wanted] = found
                self._latents.append(CachedRows(rows, of))
        if self.cache == "all":
            rows, of, null = cache_text(base, lambda at: self.items[at].prompt, records["prompt"], self.cache_folder)
            self._text = CachedRows(rows, of)
            self.null_text: Float[Tensor, "1 n d"] = rows[[null]]
        else:
            self.null_text = encode_text(base, [""]).cpu()

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
        prompts = [self.items[at].prompt for at in chosen]
        target = torch.stack([to_tensor(target) for _, target in pairs])
        return HeldOut(
            index=chosen,
            prompts=prompts,
            control=torch.stack([to_tensor(control) for control, _ in pairs]),
            target=target,
            latents=encode_images(self._base, target) if self._latents is None else self._latents[0][chosen],
            text=encode_text(self._base, prompts) if self._text is None else self._text[chosen],
        )

    def train_dataloader(self) -> DataLoader[Batch | Unencoded]:
        """Give the loader of training batches; with a trainer attached it goes on after the batches trained so far."""
        trainer = self.trainer
        latents = None if self.crop or self.flip else self._latents
        pairs = Pairs(
            self.items, self._train, self.sizes, self._bucket, latents, self._text, self.crop, self.flip, self.seed
        )
        batches = SeededBatches(
            len(pairs),
            self.batch_size,
            self.seed,
            rank=0 if trainer is None else trainer.global_rank,
            world=1 if trainer is None else trainer.world_size,
            done=self._count_done,
            shards=None if self.items.shards is None else self.items.shards[self._train],
            buffer=self.shuffle_buffer,
            buckets=None if self.buckets is None else self._bucket[self._train],
            accumulate=math.lcm(1 if trainer is None else trainer.accumulate_grad_batches, *self.accumulations),
        )
        return Resumable(
            pairs,
            batch_sampler=batches,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: DataLoader draws a seed for its workers at the beginning of each pass, and a
            # resumed run, which begins one pass more, must not move the global generator by it.
            generator=torch.Generator(),
        )

    def on_after_batch_transfer(self, batch: Batch | Unencoded, dataloader_idx: int) -> Batch:
        """Encode what is not cached, on the device and in the base's precision."""
        if isinstance(batch, Batch):
            return batch
        latents, text, control, index = batch
        if not latents.is_floating_point():
            latents = encode_images(self._base, latents.float() / 255)
        if isinstance(text, list):
            text = encode_text(self._base, text)
        return Batch(latents.to(control.device), text.to(control.device), control, index)

    def _count_done(self) -> int:
        """Micro-batches trained on since step 0; the trainer keeps the count in its checkpoints."""
        if self.trainer is None:
            return 0
        # `processed`, unlike `completed`, counts the batch after which a checkpoint is being written.
        return self.trainer.fit_loop.epoch_loop.batch_progress.state_dict()["total"]["processed"]


def encode_images(base: "Base", images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 4 h w"]:
    """Encode pictures as `Base` does, a few at a time, without gradients, in float32."""
    with torch.no_grad():
        parts = [base.encode_images(part.to(base.device, base.dtype)) for part in images.split(IMAGES_AT_ONCE)]
    return torch.cat(parts).float()


def encode_text(base: "Base", prompts: list[str]) -> Float[Tensor, "b n d"]:
    """Embed prompts as `Base` does, without gradients, in float32."""
    with torch.no_grad():
        return base.encode_text(prompts).float()


def _as_it_is(batch: Any) -> Any:
    return batch


def _one_by_one(scenes: Scenes) -> list[Scenes]:
    """The scenes under each of the conditions that they have at once."""
    conditions: list[Condition | None] = [None] if scenes.condition is None else [*parts_of(scenes.condition)]
    return [scenes] if len(conditions) == 1 else [replace(cast(Any, scenes), condition=each) for each in conditions]


def to_tensor(image: UInt8[np.ndarray, "h w c"]) -> Float[Tensor, "c h w"]:
    """Turn an 8-bit image into float32 in [0, 1], channels first."""
    return torch.tensor(image).permute(2, 0, 1).float() / 255


def to_uint8(images: Float[Tensor, "n c H W"]) -> UInt8[np.ndarray, "n H W c"]:
    """Turn images in [0, 1] into 8-bit ones, channels last; what lies outside is cut off."""
    return (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
