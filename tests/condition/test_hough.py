import cv2
import numpy as np
import pytest

from cnx.condition import Hough


def beam(angle: float, length: int = 90) -> np.ndarray:
    """A white stripe on black, 9 px wide, across the middle of 128 x 128 px."""
    photo = np.zeros((128, 128, 3), np.uint8)
    box = cv2.boxPoints(((64.0, 64.0), (float(length), 9.0), angle)).astype(np.int32)
    return cv2.fillPoly(photo, [box], (255, 255, 255), cv2.LINE_AA)


@pytest.mark.parametrize("angle", [0, 30, 90, 135])
def test_the_long_sides_of_a_stripe_are_found_with_their_direction(angle: float) -> None:
    lines = Hough().lines(beam(angle))
    long = lines[np.hypot(lines[:, 2] - lines[:, 0], lines[:, 3] - lines[:, 1]) > 70]
    assert len(long) == 2
    found = np.degrees(np.arctan2(long[:, 3] - long[:, 1], long[:, 2] - long[:, 0])) % 180
    assert np.minimum(np.abs(found - angle), 180 - np.abs(found - angle)).max() < 2


def test_lines_are_white_on_black_and_short_ones_are_none() -> None:
    control_map = Hough()(beam(30))
    assert set(np.unique(control_map)) == {0, 255} and 0 < (control_map > 0).mean() < 0.05
    assert not Hough(min_length=0.9)(beam(30)).any()


def test_fidelity_falls_with_the_angle_and_is_stricter_than_the_published_number() -> None:
    hough = Hough()
    wanted = hough(beam(30))
    scores = [hough.judge(beam(30 + turn), wanted) for turn in (0, 2, 8, 60)]
    fidelities = [score.fidelity for score in scores]
    assert fidelities == sorted(fidelities, reverse=True) and fidelities[0] == 1.0 and fidelities[-1] < 0.3
    assert scores[1].published > scores[1].fidelity
