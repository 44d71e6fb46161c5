import numpy as np
import pytest

from cnx.metric import edge_f1


def line(column: int, size: int = 32) -> np.ndarray:
    edges = np.zeros((size, size), dtype=bool)
    edges[:, column] = True
    return edges


def test_a_map_agrees_with_itself_and_an_empty_one_only_with_an_empty_one() -> None:
    empty = np.zeros((8, 8), dtype=bool)
    assert edge_f1(line(3), line(3), 0) == 1.0
    assert edge_f1(empty, empty, 2) == 1.0
    assert edge_f1(line(3, 8), empty, 2) == 0.0
    assert edge_f1(empty, line(3, 8), 2) == 0.0


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_tolerance_forgives_exactly_that_many_pixels(shift: int) -> None:
    assert edge_f1(line(10), line(10 + shift), shift) == 1.0
    assert edge_f1(line(10), line(10 + shift), shift - 1) == 0.0


def test_distance_is_euclidean() -> None:
    one, diagonal = np.zeros((8, 8), dtype=bool), np.zeros((8, 8), dtype=bool)
    one[4, 4] = diagonal[5, 5] = True
    assert edge_f1(one, diagonal, 1) == 0.0
    assert edge_f1(one, diagonal, 2**0.5) == 1.0


def test_precision_and_recall_enter_by_their_harmonic_mean() -> None:
    true = line(5)
    assert edge_f1(true | line(20), true, 1) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert edge_f1(true, true | line(20) | line(25), 1) == pytest.approx(1 / 2)  # precision 1, recall 1/3


def test_exact_f1_is_that_of_pixel_counts() -> None:
    rng = np.random.default_rng(0)
    pred, true = rng.random((2, 40, 40)) < 0.2
    hits, misses, false_alarms = (pred & true).sum(), (~pred & true).sum(), (pred & ~true).sum()
    assert edge_f1(pred, true, 0) == pytest.approx(2 * hits / (2 * hits + misses + false_alarms))
    assert edge_f1(pred, true, 0) < edge_f1(pred, true, 1) < 1


def test_maps_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        edge_f1(line(1, 8), line(1, 9), 1)
