import cv2
import numpy as np
import pytest

from cnx.condition import SoftEdge
from cnx.errors import InputError


def step(height: int, size: int = 128) -> np.ndarray:
    photo = np.full((size, size, 3), 100, np.uint8)
    photo[:, size // 2 :] += np.uint8(height)
    return photo


def test_a_higher_step_is_a_brighter_edge_and_brightest_where_the_step_is() -> None:
    rows = [SoftEdge()(step(height))[64, :, 0] for height in (0, 20, 60, 140)]
    assert [row.max() for row in rows] == sorted({row.max() for row in rows})
    assert rows[0].max() == 0 and all(row.argmax() in (63, 64) for row in rows[1:])
    assert (np.diff(rows[3][:64].astype(int)) >= 0).all(), "it rises up to the step"


def test_an_edge_between_colours_of_one_brightness_is_one_too() -> None:
    photo = np.zeros((128, 128, 3), np.uint8)
    photo[:, :64], photo[:, 64:] = (200, 0, 0), (0, 102, 0)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    assert np.ptp(grey) <= 1 and SoftEdge()(photo)[64, 64, 0] > 128


def test_texture_is_weaker_than_an_outline_of_the_same_contrast() -> None:
    noise = np.random.default_rng(0).choice(np.uint8([100, 160]), (128, 128, 1)).repeat(3, axis=2)
    assert np.median(SoftEdge()(noise)) < 0.7 * SoftEdge()(step(60)).max()


def test_levels_are_counted_and_never_brighter_than_one_level_above(birds: list[np.ndarray]) -> None:
    grey = SoftEdge()(birds[0])
    assert len(np.unique(grey)) > 50
    for levels in (2, 3, 5):
        safe = SoftEdge(levels=levels)(birds[0])
        assert set(np.unique(safe)) <= {round(255 * i / (levels - 1)) for i in range(levels)}
        assert safe[grey < 255 // levels - 1].max() == 0
    with pytest.raises(InputError, match=r"condition\.levels=1"):
        SoftEdge(levels=1)


def test_the_same_scene_at_another_size_has_the_same_map() -> None:
    small, large = (SoftEdge()(step(100, size)) for size in (256, 512))
    difference = cv2.resize(large, (256, 256), interpolation=cv2.INTER_AREA).astype(int) - small
    assert np.abs(difference).mean() < 2
