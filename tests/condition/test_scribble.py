import cv2
import numpy as np
import pytest

from cnx.condition import Scribble
from cnx.condition.scribble import find_strokes


def sketch(ink: tuple[int, int, int], paper: tuple[int, int, int]) -> np.ndarray:
    page = np.full((128, 160, 3), paper, np.uint8)
    cv2.circle(page, (60, 60), 30, ink, 3, cv2.LINE_AA)
    return cv2.line(page, (100, 20), (140, 110), ink, 2, cv2.LINE_AA)


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (200, 20, 20)


@pytest.mark.parametrize(("ink", "paper"), [(BLACK, WHITE), (WHITE, BLACK), (RED, WHITE), (BLACK, (240, 236, 228))])
def test_a_person_s_strokes_become_white_on_black_whatever_the_ink(ink: tuple, paper: tuple) -> None:
    control_map = Scribble()(sketch(ink, paper))
    expected = sketch(WHITE, BLACK)
    assert set(np.unique(control_map)) == {0, 255}
    assert (control_map[expected == 255] == 255).all() and not control_map[expected == 0].any()


def test_what_is_no_drawing_is_not_taken_for_one(birds: list[np.ndarray], disc: np.ndarray) -> None:
    assert all(find_strokes(photo) is None for photo in (*birds, disc))
    product = cv2.circle(np.full((128, 128, 3), 255, np.uint8), (64, 64), 30, (90, 60, 30), -1)
    assert find_strokes(product) is None, "a thing on white ground"
    assert find_strokes(np.full((64, 64, 3), 255, np.uint8)) is None, "an empty page"


def test_the_outline_of_a_disc_is_one_stroke_of_the_width_asked_for(disc: np.ndarray) -> None:
    areas = []
    for width in (8, 16, 32):
        strokes = (Scribble(width=width)(disc)[:, :, 0] > 0).astype(np.uint8)
        assert cv2.connectedComponents(strokes)[0] == 2, "ground and one stroke"
        areas.append(strokes.sum() / (2 * np.pi * 40))
    # 1/4 of it at 128 px, and a diagonal chain of pixels is wider than its pen.
    assert areas == pytest.approx([2, 4, 8], rel=0.35) and areas == sorted(areas)


def test_strokes_lie_on_the_edges_and_not_in_between(disc: np.ndarray) -> None:
    y, x = np.indices(disc.shape[:2])
    off = np.abs(np.hypot(x - 80, y - 64) - 40)
    strokes = Scribble()(disc)[:, :, 0] > 0
    assert off[strokes].max() < 4 and strokes[off < 0.5].mean() > 0.75


def test_specks_are_no_strokes(disc: np.ndarray) -> None:
    large = cv2.resize(disc, (640, 512))
    expected = Scribble()(large)
    for x, y in ((60, 60), (600, 450)):
        cv2.circle(large, (x, y), 2, (255, 255, 255), -1, cv2.LINE_AA)
    assert expected.any() and np.array_equal(Scribble()(large), expected)
