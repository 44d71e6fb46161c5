"""Aspect-ratio buckets: the few sizes that pictures of any shape are cropped to."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from cnx.errors import InputError


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


def bucket_sizes(resolution: int, step: int, most: float = 2.0) -> list[Size]:
    """The sizes of about resolution² pixels, and no more, whose sides are multiples of `step`, from tall to wide.

    `most` is the longer side over the shorter one, at most. Raises InputError where `step` does not divide the
    resolution, so that squares would have no bucket.
    """
    if step < 8 or step % 8 or resolution % step:
        raise InputError(f"data.buckets={step}: must be a multiple of 8 that divides data.resolution={resolution}")
    sizes = [Size(resolution**2 // width // step * step, width) for width in range(step, resolution + 1, step)]
    tall = [size for size in sizes if size.height <= most * size.width]
    wide = [Size(size.width, size.height) for size in tall if size.height != size.width]
    return tall + wide[::-1]


def nearest_bucket(
    heights: Shaped[np.ndarray, " n"], widths: Shaped[np.ndarray, " n"], sizes: list[Size]
) -> Int[np.ndarray, " n"]:
    """The number of the bucket with the aspect ratio nearest to each picture's, by the ratio of the ratios."""
    ratios = np.log(np.array([size.width / size.height for size in sizes]))
    wanted = np.log(widths.astype(np.float64) / heights)
    nearest = np.zeros(len(wanted), dtype=np.int64)
    for number, ratio in enumerate(ratios):  # bucket by bucket, so that no n x buckets array is made
        nearest = np.where(abs(wanted - ratio) < abs(wanted - ratios[nearest]), number, nearest)
    return nearest
