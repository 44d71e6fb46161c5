"""Look at every pair of a data set, before hours are spent on it."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from cnx.condition import Condition
from cnx.data.ahead import map_ahead, progress
from cnx.data.folder import BEHIND_MAP, BEHIND_TARGET, Item, decode, fit, load_image, read_file, size_of
from cnx.data.split import is_held_out
from cnx.errors import InputError

FLAT = 8  # grey levels between an image's darkest and lightest part, up to which it shows nothing: JPEG's noise
THUMB, CLOSE_THUMB = 8, 3  # side of a thumbnail, and by how many grey levels those of one picture differ at most
PROOF, CLOSE_PROOF = 64, 3  # side at which two pictures are compared for certain, and their mean difference at most


@dataclass
class Survey:
    """What every pair of a data set is like; arrays have one entry a pair.

    Attributes:
        unusable: why training cannot read a pair, by its position.
        map_size, size: height and width of maps and pictures as they are, in pixels; 0 where unusable.
        empty: maps of one colour all over.
        brightness, contrast: of maps, the mean and the deviation of a channel from its own mean, in grey levels.
        blank: pictures of one colour all over.
        held_out: pairs that are never trained on.
        target: sha256 of the picture's file.
        thumbs: pictures at 8x8 pixels.
    """

    unusable: dict[int, str]
    map_size: Int[np.ndarray, "n 2"]
    size: Int[np.ndarray, "n 2"]
    empty: Bool[np.ndarray, " n"]
    brightness: Float[np.ndarray, " n"]
    contrast: Float[np.ndarray, " n"]
    blank: Bool[np.ndarray, " n"]
    held_out: Bool[np.ndarray, " n"]
    target: np.ndarray
    thumbs: UInt8[np.ndarray, "n 8 8 3"]

    @property
    def usable(self) -> Bool[np.ndarray, " n"]:
        good = np.ones(len(self.size), dtype=bool)
        good[list(self.unusable)] = False
        return good


class Look(NamedTuple):
    """One pair of a Survey."""

    map_size: tuple[int, int]
    size: tuple[int, int]
    empty: bool
    brightness: float
    contrast: float
    target: bytes
    thumb: UInt8[np.ndarray, "8 8 3"]


def survey(items: Sequence[Item], heldout: float, workers: int) -> Survey:
    """Decode every map and picture, in threads; `heldout` is the share that is never trained on.

    JPEGs are decoded at an eighth of their size, which finds the same damage in less time.
    """
    count = len(items)
    found = Survey(
        unusable={},
        map_size=np.zeros((count, 2), dtype=np.int32),
        size=np.zeros((count, 2), dtype=np.int32),
        empty=np.zeros(count, dtype=bool),
        brightness=np.zeros(count),
        contrast=np.zeros(count),
        blank=np.zeros(count, dtype=bool),
        held_out=np.zeros(count, dtype=bool),
        target=np.zeros(count, dtype="S32"),
        thumbs=np.zeros((count, THUMB, THUMB, 3), dtype=np.uint8),
    )
    for at, looked in enumerate(_in_threads(items, workers)):
        if isinstance(looked, InputError):
            found.unusable[at] = str(looked)
            continue
        found.map_size[at], found.size[at] = looked.map_size, looked.size
        found.empty[at], found.thumbs[at] = looked.empty, looked.thumb
        found.brightness[at], found.contrast[at] = looked.brightness, looked.contrast
        found.blank[at] = _is_flat(looked.thumb)
        found.target[at] = looked.target
        found.held_out[at] = is_held_out(looked.target.hex(), heldout)
        if looked.map_size != looked.size:
            (map_height, map_width), (height, width) = looked.map_size, looked.size
            found.unusable[at] = (
                f"{items[at].source}: the control map is {map_width}x{map_height}, its picture {width}x{height}"
            )
    return found


def look(item: Item) -> Look | InputError:
    """What a pair is like, or why training cannot read it."""
    try:
        control_file, target_file = read_file(item.source), read_file(item.target)
        control = decode(item.source, control_file, BEHIND_MAP)
        size = size_of(item.target, target_file)
        small = decode(item.target, target_file, BEHIND_TARGET, least=(PROOF, PROOF))
    except InputError as error:
        return error
    thumb = cv2.resize(small, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    height, width = control.shape[:2]
    few = control[::4, ::4]
    return Look(
        (height, width),
        size,
        _is_flat(control),
        float(few.mean()),
        float(few.std(axis=(0, 1)).mean()),
        hashlib.sha256(target_file).digest(),
        np.asarray(thumb, dtype=np.uint8),
    )


def _is_flat(image: UInt8[np.ndarray, "h w 3"]) -> bool:
    few = image[::8, ::8]  # enough to tell for most images
    return all((np.ptp(part.reshape(-1, 3).T, axis=1) <= FLAT).all() for part in (few, image))


def _in_threads(items: Sequence[Item], workers: int) -> Iterator[Look | InputError]:
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the error, at twice the size, counts
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pairs are the parallelism
    try:
        with progress("Looking at pairs", len(items)) as advance:
            for looked in map_ahead(look, items, 256, workers):
                yield looked
                advance(1)
    finally:
        cv2.setNumThreads(threads)


def near_copies(found: Survey, items: Sequence[Item]) -> list[tuple[int, int]]:
    """Held-out pairs whose picture is trained on too, in another file: (held-out, trained on).

    Copies of a file fall on the same side of the split; this finds a picture saved again, or at another size.
    Compared at 8x8 pixels, then for certain at 64x64. Pictures of one colour are left out.
    """
    use = found.usable & ~found.blank
    held, trained = np.flatnonzero(use & found.held_out), np.flatnonzero(use & ~found.held_out)
    copies: list[tuple[int, int]] = []
    if not len(held) or not len(trained):
        return copies
    # By mean brightness first: a copy's is as near as its pixels are.
    brightness = found.thumbs.reshape(len(found.thumbs), -1).mean(axis=1)
    trained = trained[np.argsort(brightness[trained])]
    edges = brightness[trained]
    for at in held.tolist():
        first, last = np.searchsorted(edges, [brightness[at] - CLOSE_THUMB, brightness[at] + CLOSE_THUMB])
        near = trained[first:last]
        # A few places of the thumbnail rule out nearly all others.
        for part in (slice(0, None, 4), slice(None)):
            apart = found.thumbs[near, part].astype(np.int16) - found.thumbs[at, part]
            near = near[(np.abs(apart) <= CLOSE_THUMB).all(axis=(1, 2, 3))]
        copies += [(at, other) for other in near.tolist() if _is_copy(items[at], items[other])]
    return copies


def _is_copy(item: Item, other: Item) -> bool:
    first, second = (
        cv2.resize(load_image(each.target), (PROOF, PROOF), interpolation=cv2.INTER_AREA).astype(float)
        for each in (item, other)
    )
    return bool(np.abs(first - second).mean() <= CLOSE_PROOF)


@dataclass
class Fit:
    """How well maps fit their pictures, by the condition's own measure.

    Attributes:
        chosen: positions of the pairs that were judged.
        own: fidelity of each map to its own picture, in [0, 1].
        other: fidelity of the same map to the picture of another pair: what chance gives.
    """

    chosen: list[int]
    own: Float[np.ndarray, " m"]
    other: Float[np.ndarray, " m"]

    @property
    def whole(self) -> bool:
        """Whether the maps as a whole fit their own pictures better than others': in four of five pairs."""
        return bool((self.own > self.other).mean() >= 0.8)

    @property
    def misfits(self) -> list[int]:
        """Pairs whose map fits its picture hardly better than chance, where the others do.

        Calibrated as control fidelity is: 0 is what the median map has in common with another picture, 1 with its own.
        """
        floor, typical = np.median(self.other), np.median(self.own)
        if not self.whole or typical <= floor:
            return []
        calibrated = (self.own - floor) / (typical - floor)
        return [at for at, score in zip(self.chosen, calibrated, strict=True) if score < 0.25]


def judge_fit(items: Sequence[Item], found: Survey, condition: Condition, most: int | None, workers: int) -> Fit:
    """Annotate the pictures of at most `most` pairs, evenly chosen, and compare with their maps, and with others'."""
    able = np.flatnonzero(found.usable & ~found.empty & ~found.blank)
    count = len(able) if most is None else min(most, len(able))
    places = np.linspace(0, len(able) - 1, count).round().astype(int)
    chosen: list[int] = able[places].tolist() if count > 1 else []  # one alone has no other to compare with

    def judge(number: int) -> tuple[float, float]:
        at = chosen[number]
        control, target = load_image(items[at].source, BEHIND_MAP), load_image(items[at].target)
        # Half of the pairs away: neighbours in a listing may show the same.
        other = load_image(items[chosen[(number + len(chosen) // 2) % len(chosen)]].target)
        return (
            condition.judge(target, control).fidelity,
            condition.judge(fit(other, *control.shape[:2]), control).fidelity,
        )

    with progress("Comparing maps with pictures", len(chosen)) as advance:
        scores = []
        for pair in map_ahead(judge, range(len(chosen)), 64, workers):
            scores.append(pair)
            advance(1)
    own, other = np.array(scores).reshape(-1, 2).T
    return Fit(chosen, own, other)
