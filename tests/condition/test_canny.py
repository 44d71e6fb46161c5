import cv2
import numpy as np
import pytest

from cnx.condition import Agreement, Canny


def disc(size: int = 128, shift: int = 0, inside: int = 220, outside: int = 30) -> np.ndarray:
    image = np.full((size, size, 3), outside, dtype=np.uint8)
    return cv2.circle(image, (size // 2 + shift, size // 2), size // 4, (inside, inside, inside), -1)


def test_the_map_is_opencv_s_of_the_grey_photo_in_all_channels() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    control_map = Canny()(photo)
    assert control_map.dtype == np.uint8 and control_map.shape == photo.shape
    expected = cv2.Canny(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), 100, 200)
    assert all(np.array_equal(control_map[..., channel], expected) for channel in range(3))


def test_edges_are_white_on_black_and_channels_are_read_as_rgb() -> None:
    photo = np.zeros((32, 32, 3), dtype=np.uint8)
    photo[:, 16:, 0] = 255  # a red half: 76 of grey if read as RGB, 29 as BGR
    assert not Canny(250, 400)(photo).any()  # the gradient, 4 x 76, is over low and under high
    control_map = Canny(100, 250)(photo)
    assert set(np.unique(control_map)) == {0, 255}
    assert 0 < (control_map > 0).mean() < 0.1


def test_a_photo_obeys_its_own_map_entirely() -> None:
    canny = Canny()
    assert canny.judge(disc(), canny(disc())) == Agreement(fidelity=1.0, published=1.0)


def test_fidelity_falls_with_displacement_and_the_published_number_sooner() -> None:
    canny = Canny()
    wanted = canny(disc())
    scores = [canny.judge(disc(shift=shift), wanted).fidelity for shift in (0, 1, 3, 8)]
    assert scores == sorted(scores, reverse=True) and scores[-1] < 0.35
    assert scores[1] > 0.9 > 0.5 > canny.judge(disc(shift=1), wanted).published


@pytest.mark.parametrize(("size", "forgiven"), [(64, 1), (128, 1), (256, 2), (512, 4)])
def test_tolerance_grows_with_the_image(size: int, forgiven: int) -> None:
    canny = Canny()
    photo = np.zeros((size, size, 3), dtype=np.uint8)
    photo[:, size // 2 :] = 255
    wanted = canny(photo)
    assert canny.judge(photo, np.roll(wanted, forgiven, axis=1)).fidelity == 1.0
    assert canny.judge(photo, np.roll(wanted, forgiven + 1, axis=1)).fidelity == 0.0


def test_an_empty_drawing_obeys_only_an_empty_map() -> None:
    canny = Canny()
    blank = np.full((64, 64, 3), 128, dtype=np.uint8)
    assert canny.judge(blank, canny(blank)) == Agreement(1.0, 1.0)
    assert canny.judge(blank, canny(disc(64))) == Agreement(0.0, 0.0)
