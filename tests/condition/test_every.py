"""What holds for every condition that makes its map of the picture alone."""

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import run
from cnx.condition import Agreement, Condition

CONDITIONS = [
    "canny", "hough", "hed", "softedge", "scribble", "fake_scribble", "lineart", "lineart_anime", "shuffle", "tile",
    "inpaint",
]  # fmt: skip


@pytest.fixture(params=CONDITIONS)
def condition(request: pytest.FixtureRequest) -> Condition:
    with initialize_config_dir(str(Path(run.__file__).parent / "conf"), version_base="1.3"):
        return instantiate(compose("config", overrides=[f"condition={request.param}"]).condition)


def test_a_map_has_the_size_of_its_picture_and_is_the_same_each_time(condition: Condition, disc: np.ndarray) -> None:
    before = disc.copy()
    control_map = condition(disc)
    assert control_map.shape == disc.shape and control_map.dtype == np.uint8
    assert np.array_equal(control_map, condition(disc)) and np.array_equal(disc, before)
    shown = condition.display(control_map)
    assert shown.shape == disc.shape and shown.dtype == np.uint8


def test_a_flat_picture_has_no_lines_and_no_error(condition: Condition) -> None:
    flat = np.full((64, 96, 3), 120, np.uint8)
    control_map = condition(flat)
    assert control_map.shape == flat.shape
    assert not control_map.any() or condition.white.startswith(("no meaning", "white:"))
    assert condition.judge(flat, control_map).fidelity == pytest.approx(1.0)


def test_who_obeys_is_told_from_who_draws_something_else(condition: Condition, birds: list[np.ndarray]) -> None:
    for one, other in zip(birds, birds[1:] + birds[:1], strict=True):
        wanted = condition(one)
        obeys, ignores = condition.judge(one, wanted), condition.judge(other, wanted)
        assert isinstance(obeys, Agreement) and 0 <= ignores.fidelity < 0.8 < obeys.fidelity <= 1 + 1e-6
        assert obeys.published > ignores.published and np.isfinite(obeys.published)


def test_it_says_what_it_is(condition: Condition) -> None:
    assert condition.white and condition.licence and "higher is better" in condition.measure
