import math

import pytest

from cnx.metric import calibrate, is_degenerate


def test_floor_is_zero_and_ceiling_is_one() -> None:
    assert calibrate(0.25, 0.25, 0.65) == 0.0
    assert calibrate(0.65, 0.25, 0.65) == pytest.approx(1.0)
    assert calibrate(0.45, 0.25, 0.65) == pytest.approx(0.5)


def test_the_scale_goes_on_beyond_its_ends() -> None:
    assert calibrate(0.75, 0.25, 0.65) > 1
    assert calibrate(0.15, 0.25, 0.65) < 0


@pytest.mark.parametrize("ceiling", [0.3, 0.34, 0.1, math.nan])
def test_without_a_span_there_is_nothing_to_calibrate_against(ceiling: float) -> None:
    assert is_degenerate(0.3, ceiling)
    assert calibrate(0.9, 0.3, ceiling) == 0.0


def test_the_least_span_is_enough() -> None:
    assert not is_degenerate(0.0, 0.05)
    assert calibrate(0.05, 0.0, 0.05) == 1.0
