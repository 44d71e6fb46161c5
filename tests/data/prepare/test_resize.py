"""Photos of every shape come to the data set's size."""

import numpy as np
import pytest

from cnx.data.prepare.resize import Crop, Keep, Pad, Resize, Stretch, stretch
from cnx.errors import InputError

SHAPES = [(60, 40), (40, 60), (100, 100), (32, 32), (9, 300), (300, 9), (20, 24)]


def disc(height: int, width: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2 + 0.5) ** 2 + (x - width / 2 + 0.5) ** 2 < radius**2
    return np.where(inside[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resize", [Crop(32), Pad(32), Stretch(32)])
def test_every_shape_becomes_a_square(resize: Resize, shape: tuple[int, int]) -> None:
    photo = np.full((*shape, 3), 77, dtype=np.uint8)
    picture = resize(photo)
    framed = resize.frame(picture, 0)
    assert framed.shape == (32, 32, 3) and framed.dtype == np.uint8
    assert (picture == 77).all()  # nothing is mixed in from outside
    assert isinstance(resize, Pad) == (picture.shape != framed.shape) or shape[0] == shape[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_keep_makes_the_shorter_side_the_size_and_keeps_the_shape(shape: tuple[int, int]) -> None:
    picture = Keep(32)(np.zeros((*shape, 3), dtype=np.uint8))
    assert min(picture.shape[:2]) == 32
    assert abs(picture.shape[0] / picture.shape[1] - shape[0] / shape[1]) < 0.02 * shape[0] / shape[1]


@pytest.mark.parametrize("resize", [Crop(64), Pad(64), Keep(64)])
def test_a_disc_stays_a_disc(resize: Resize) -> None:
    picture = resize(disc(100, 160, 40))[..., 0] > 127
    tall, wide = picture.any(axis=1).sum(), picture.any(axis=0).sum()
    assert abs(int(tall) - int(wide)) <= 1
    stretched = Stretch(64)(disc(100, 160, 40))[..., 0] > 127
    assert stretched.any(axis=1).sum() > 1.4 * stretched.any(axis=0).sum()


def test_what_grows_one_way_and_shrinks_the_other_is_averaged_where_it_shrinks() -> None:
    stripes = np.tile(np.array([0, 255] * 64, dtype=np.uint8)[None, :, None], (8, 1, 3))
    assert (abs(stretch(stripes, 32, 32).astype(int) - 128) <= 1).all()


def test_the_frame_is_even_and_of_the_given_grey() -> None:
    framed = Pad(32).frame(np.full((32, 16, 3), 9, dtype=np.uint8), 5)
    assert (framed[:, :8] == 5).all() and (framed[:, 8:24] == 9).all() and (framed[:, 24:] == 5).all()


@pytest.mark.parametrize(("size", "remedy"), [(0, "use 8"), (-3, "use 8"), (510, "use 512")])
def test_a_size_that_no_vae_takes_is_refused(size: int, remedy: str) -> None:
    with pytest.raises(InputError, match=f"size={size}: .*{remedy}"):
        Crop(size)
