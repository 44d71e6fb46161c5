import math
import random

import pytest

from cnx.metric import find_plateau


def noise(n: int, sigma: float = 0.001, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0, sigma) for _ in range(n)]


def test_a_rise_ends_the_plateau_at_once() -> None:
    found = find_plateau([*noise(8), 0.02, 0.05, 0.1])
    assert found.end == 8
    assert found.level == pytest.approx(0, abs=0.001) and found.threshold == 0.01


@pytest.mark.parametrize("sigma", [0.0, 0.0005, 0.003, 0.02])
def test_noise_of_any_size_is_no_rise(sigma: float) -> None:
    ends = [find_plateau(noise(12, sigma, seed)).end for seed in range(200)]
    # Noise is estimated from few values at first, and then sometimes far too small: one in ten may be mistaken.
    assert sum(end is not None for end in ends) <= 20


def test_a_rise_must_stand_out_of_the_noise_before_it() -> None:
    assert find_plateau([*noise(8, 0.02), 0.04]).end is None
    assert find_plateau([*noise(8, 0.001), 0.04]).end == 8


def test_an_outlier_downwards_neither_ends_nor_blinds() -> None:
    assert find_plateau([0.0, -0.02, -0.001, 0.0005, -0.3, 0.001, 0.04]).end == 6


def test_a_level_other_than_0_is_a_plateau_too() -> None:
    found = find_plateau([0.3, 0.301, 0.299, 0.3, 0.301])
    assert found.end is None and found.level == pytest.approx(0.3)


def test_four_values_make_a_plateau_and_nan_is_none() -> None:
    assert find_plateau([0.0, 0.0, 0.0, 0.5]).end is None
    assert find_plateau([0.0, 0.0, 0.0, 0.0, 0.5]).end == 4
    assert find_plateau([0.0, math.nan, 0.0, math.nan, 0.0, 0.5]).end is None
    assert find_plateau([0.0, math.nan, 0.0, 0.0, 0.0, math.nan, 0.5]).end == 6
    assert find_plateau([]).end is None
