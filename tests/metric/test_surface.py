import numpy as np
import pytest

from cnx.metric import depth_rmse, mean_iou, normal_angles


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_rmse_is_zero_of_itself_symmetric_and_in_grey_levels() -> None:
    a, b = random(0, 8, 9), random(1, 8, 9)
    assert depth_rmse(a, a) == 0
    assert depth_rmse(a, b) == depth_rmse(b, a) > 0
    assert depth_rmse(np.full((4, 4), 250, np.uint8), np.full((4, 4), 5, np.uint8)) == 245  # 8-bit does not wrap


@pytest.mark.parametrize("degrees", [0, 1e-3, 30, 90, 180])
def test_angles_are_those_that_normals_are_turned_by(degrees: float) -> None:
    turn = np.radians(degrees)
    flat = np.tile([0.0, 0.0, 1.0], (3, 4, 1))
    turned = np.tile([np.sin(turn), 0.0, np.cos(turn)], (3, 4, 1))
    angles = normal_angles(flat, turned)
    assert angles.shape == (3, 4)
    np.testing.assert_allclose(angles, degrees, atol=1e-9)


def test_iou_is_of_the_classes_that_the_true_map_shows() -> None:
    true = np.array([[2, 2, 2, 2]], np.uint8)
    assert mean_iou(true, true) == 1
    assert mean_iou(np.array([[2, 2, 7, 7]], np.uint8), true) == 0.5
    assert mean_iou(true, np.array([[2, 2, 7, 7]], np.uint8)) == (0.5 + 0) / 2
    assert mean_iou(np.array([[7, 7, 7, 7]], np.uint8), true) == 0


def test_pixels_of_no_known_class_are_left_out() -> None:
    true = np.array([[2, 2, 255, 255]], np.uint8)
    assert mean_iou(np.array([[2, 2, 9, 2]], np.uint8), true) == 1
    assert mean_iou(np.array([[2, 255, 9, 2]], np.uint8), true) == 0.5  # unknown where something is known is a miss
    assert mean_iou(true, np.full((1, 4), 255, np.uint8)) == 0


@pytest.mark.parametrize("measure", [depth_rmse, normal_angles, mean_iou])
def test_maps_of_different_sizes_are_refused(measure) -> None:
    with pytest.raises(ValueError, match="differ in size"):
        measure(random(0, 4, 4, 3), random(0, 4, 5, 3))
