"""Randomness that a picture's own content seeds: the same picture has the same map, in every process and run."""

import zlib

import cv2
import numpy as np
from jaxtyping import Float

from cnx.condition.condition import Pixels


def generator_of(image: Pixels) -> np.random.Generator:
    """A generator seeded by the bytes of a picture."""
    return np.random.default_rng(zlib.crc32(np.ascontiguousarray(image).tobytes()))


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Float[np.ndarray, "h w"]:
    """A smooth random field in [0, 1], both reached, whose hills are `cell` px apart."""
    rows, columns = (int(np.ceil(side / cell)) + 2 for side in (height, width))
    points = rng.random((rows, columns), dtype=np.float32)
    size = round(columns * cell), round(rows * cell)
    # The outermost cells are cut off: there is nothing to interpolate beyond them.
    margin = round(cell)
    field = cv2.resize(points, size, interpolation=cv2.INTER_CUBIC)[margin:, margin:][:height, :width]
    return (field - field.min()) / (field.max() - field.min())
