import cv2
import numpy as np
import pytest

from cnx.data.synthetic import Birds


@pytest.fixture(scope="session")
def birds() -> list[np.ndarray]:
    """Three photo-like pictures of 128 px, at the size that the small base draws."""
    return [Birds().draw(index, 128).target for index in range(3)]


@pytest.fixture
def disc() -> np.ndarray:
    """A light disc on dark ground, 160 x 128 px."""
    return cv2.circle(np.full((128, 160, 3), 40, np.uint8), (80, 64), 40, (210, 210, 210), -1, cv2.LINE_AA)
