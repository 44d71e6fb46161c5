import pytest

from cnx.report.interval import mean_interval


def test_the_interval_is_that_of_a_table_of_t() -> None:
    # Mean 2, s = 1, n = 3: half = t(0.975; 2) / sqrt(3) = 4.3027 / 1.7321.
    mean, half, n = mean_interval([1.0, 2.0, 3.0])
    assert (mean, n) == (2.0, 3)
    assert half == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert mean_interval([1.0, 2.0, 3.0]).words("z.2f") == "2.00 [-0.48, 4.48]"


def test_one_value_has_no_interval_and_equal_values_an_empty_one() -> None:
    assert mean_interval([0.7]).words(".2f") == "0.70"
    assert mean_interval([0.7, 0.7]).half == pytest.approx(0)
