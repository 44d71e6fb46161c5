import cv2
import numpy as np
import pytest

from cnx.condition import Lineart, LineartAnime
from cnx.condition.lineart import difference_of_gaussians


def test_a_step_of_one_reaches_from_minus_one_to_one() -> None:
    step = np.repeat((np.arange(200) >= 100).astype(np.float32)[None], 9, axis=0)
    difference = difference_of_gaussians(step, sigma=4.0)
    assert difference.min() == pytest.approx(-1, abs=0.02) and difference.max() == pytest.approx(1, abs=0.02)
    assert difference[4].argmin() < 100 < difference[4].argmax(), "negative on the dark side"


@pytest.mark.parametrize("condition", [Lineart(), LineartAnime()])
def test_lines_are_white_on_black_on_the_dark_side_of_an_edge(condition: Lineart | LineartAnime) -> None:
    photo = np.full((128, 128, 3), 60, np.uint8)
    photo[:, 64:] = 200
    line = condition(photo)[64, :, 0]
    assert line.max() > 200 and 58 <= line.argmax() < 64 and not line[64:].any() and not line[:50].any()


@pytest.mark.parametrize("condition", [Lineart(), LineartAnime()])
def test_a_dark_stroke_is_one_line_and_a_light_one_none_on_itself(condition: Lineart | LineartAnime) -> None:
    page = np.full((256, 256, 3), 128, np.uint8)
    dark, light = (cv2.line(page.copy(), (128, 20), (128, 230), (tone,) * 3, 2) for tone in (0, 255))
    row = condition(dark)[128, :, 0]
    assert row[127:129].max() > 200 and cv2.connectedComponents((row > 100).astype(np.uint8)[None])[0] == 2
    assert condition(light)[128, 127:129].max() == 0


def test_the_darker_a_line_the_brighter_it_is_drawn_and_in_anime_it_is_crisp() -> None:
    tones = [
        Lineart()(cv2.line(np.full((256, 256, 3), 230, np.uint8), (128, 0), (128, 255), (t,) * 3, 3))
        for t in (200, 150, 0)
    ]
    brightness = [int(line.max()) for line in tones]
    assert brightness == sorted(set(brightness))


@pytest.mark.parametrize("condition", [Lineart(), LineartAnime()])
def test_flat_colours_of_one_brightness_are_parted_by_a_line(condition: Lineart | LineartAnime) -> None:
    photo = np.zeros((128, 128, 3), np.uint8)
    photo[:, :64], photo[:, 64:] = (200, 0, 0), (0, 102, 0)
    line = condition(photo)[64, :, 0]
    assert line[58:70].max() > 200 and not line[:50].any() and not line[78:].any()


def test_anime_is_nearly_black_and_white(birds: list[np.ndarray]) -> None:
    def share_of_greys(control_map: np.ndarray) -> float:
        lines = control_map[control_map > 0]
        return float(((lines > 30) & (lines < 225)).mean())

    assert share_of_greys(LineartAnime()(birds[0])) < share_of_greys(Lineart()(birds[0]))
