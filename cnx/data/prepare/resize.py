"""How a photo of any shape comes to the size of the data set."""

from abc import ABC, abstractmethod

import cv2
import numpy as np
from jaxtyping import UInt8

from cnx.data.folder import fit
from cnx.errors import InputError


class Resize(ABC):
    """Brings a photo to its size before it is annotated, so that map and photo agree to the pixel.

    Shrinks with INTER_AREA and enlarges with INTER_LINEAR, as `fit` does. Deviation: attempts 1 to 7 annotated at the
    photo's own size and resized map and photo with INTER_NEAREST.

    Args:
        size: in pixels, a multiple of 8. Raises InputError for another.
    """

    def __init__(self, size: int) -> None:
        if size < 8 or size % 8:
            raise InputError(f"size={size}: must be a positive multiple of 8; use {max(8, round(size / 8) * 8)}")
        self.size = size

    @abstractmethod
    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which a photo of `height` x `width` is needed, in pixels, before any cropping."""

    @abstractmethod
    def __call__(self, photo: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """The photo as it is annotated."""

    def frame(self, image: UInt8[np.ndarray, "H W 3"], grey: int) -> UInt8[np.ndarray, "S T 3"]:
        """What is done to photo and map alike after that: nothing, but for `Pad`. `grey` fills what is added."""
        return image


class Crop(Resize):
    """Cuts the largest square out of the middle: nothing is distorted, the ends of a long photo are lost."""

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size

    def __call__(self, photo: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        return fit(photo, self.size)


class Keep(Resize):
    """Gives the shorter side `size` pixels and keeps the photo's shape, for training on several shapes."""

    def shape(self, height: int, width: int) -> tuple[int, int]:
        scale = self.size / min(height, width)
        return round(height * scale), round(width * scale)

    def __call__(self, photo: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        return stretch(photo, *self.shape(*photo.shape[:2]))


class Pad(Resize):
    """Gives the longer side `size` pixels and fills the square up with black: nothing is lost or distorted.

    The map is made before, so that the frame's border is no edge in it, and filled up with black too.
    """

    def shape(self, height: int, width: int) -> tuple[int, int]:
        scale = self.size / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def __call__(self, photo: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        return stretch(photo, *self.shape(*photo.shape[:2]))

    def frame(self, image: UInt8[np.ndarray, "H W 3"], grey: int) -> UInt8[np.ndarray, "S S 3"]:
        height, width = image.shape[:2]
        framed = np.full((self.size, self.size, 3), grey, dtype=np.uint8)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        framed[top : top + height, left : left + width] = image
        return framed


class Stretch(Resize):
    """Makes every photo a square whatever its shape: nothing is lost, all is distorted. CuteNet's way."""

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size

    def __call__(self, photo: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        return stretch(photo, self.size, self.size)


def stretch(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """Resize an image, each side for itself: what shrinks by area first, then what grows linearly."""
    # In two steps, because INTER_AREA does not average where either side grows.
    smaller = (min(width, image.shape[1]), min(height, image.shape[0]))
    if smaller != image.shape[1::-1]:
        image = np.asarray(cv2.resize(image, smaller, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if smaller != (width, height):
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    return image
