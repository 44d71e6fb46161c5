import numpy as np
import pytest

from cnx.condition import Tile
from cnx.errors import InputError


def test_details_go_and_mean_colours_stay(birds: list[np.ndarray]) -> None:
    control_map = Tile()(birds[0])
    blocks, original = (x.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3)) for x in (control_map, birds[0]))
    assert np.abs(blocks - original).mean() < 4
    steepest, was = (np.abs(np.diff(x.astype(int), axis=1)).max() for x in (control_map, birds[0]))
    assert steepest < was / 2


def test_new_details_do_not_count_against_a_drawing(birds: list[np.ndarray]) -> None:
    wanted = Tile()(birds[0])
    # Checks that cancel out within each 8 x 8 px.
    checks = (np.indices((128, 128)).sum(axis=0) % 2 * 60 - 30)[:, :, None]
    drawn = np.clip(birds[0].astype(int), 30, 225)
    plain, detailed = (Tile().judge(x.astype(np.uint8), wanted) for x in (drawn, drawn + checks))
    assert detailed[:2] == pytest.approx(plain[:2], rel=0.02)
    darker = Tile().judge((drawn // 2).astype(np.uint8), wanted)
    assert darker.published < plain.published - 6 and darker.fidelity < plain.fidelity


def test_a_larger_factor_leaves_less(birds: list[np.ndarray]) -> None:
    spreads = [Tile(factor)(birds[0]).std() for factor in (1, 8, 128)]
    assert spreads == sorted(spreads, reverse=True) and np.array_equal(Tile(1)(birds[0]), birds[0])
    odd = birds[0][:67, :101]
    assert Tile()(odd).shape == odd.shape
    with pytest.raises(InputError, match=r"condition\.factor=0"):
        Tile(0)
