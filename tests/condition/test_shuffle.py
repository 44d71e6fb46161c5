import numpy as np

from cnx.condition import Shuffle
from cnx.metric import colour_overlap, ssim


def test_colours_stay_and_places_do_not(birds: list[np.ndarray]) -> None:
    for photo in birds:
        control_map = Shuffle()(photo)
        assert colour_overlap(control_map, photo) > 0.7 and ssim(control_map, photo) < 0.7
        assert control_map.min() >= photo.min() and control_map.max() <= photo.max(), "no colour that was not there"


def test_the_flow_is_smooth_and_reaches_the_whole_picture() -> None:
    # A picture whose colours say where a pixel came from.
    y, x = np.indices((256, 256))
    places = np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)
    came_from = Shuffle()(places)[:, :, :2].astype(int)
    assert came_from.min() <= 2 and came_from.max() >= 253
    assert np.abs(np.diff(came_from, axis=0)).max() < 16 and np.abs(np.diff(came_from, axis=1)).max() < 16


def test_the_content_is_the_seed(birds: list[np.ndarray]) -> None:
    nearly = birds[0].copy()
    nearly[0, 0, 0] ^= 1
    assert ssim(Shuffle()(nearly), Shuffle()(birds[0])) < 0.9


def test_a_drawing_with_the_same_colours_elsewhere_obeys(birds: list[np.ndarray]) -> None:
    wanted = Shuffle()(birds[0])
    assert Shuffle().judge(birds[0][:, ::-1].copy(), wanted) == Shuffle().judge(birds[0], wanted)
    assert Shuffle().judge(255 - birds[0], wanted).fidelity < 0.3
