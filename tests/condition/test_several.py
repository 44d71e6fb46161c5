"""Several conditions at once."""

import numpy as np
import pytest

import run
from cnx.condition import Canny, Condition, Given, Several, apart, parts_of
from cnx.condition.tile import Tile
from cnx.errors import InputError
from small_runs import composed


def test_maps_are_stacked_in_the_order_of_the_names(birds: list[np.ndarray]) -> None:
    one, other = Canny()(birds[0]), Tile()(birds[0])
    assert np.array_equal(Several(canny=Canny(), tile=Tile())(birds[0]), np.concatenate([one, other], axis=2))
    assert np.array_equal(Several(tile=Tile(), canny=Canny())(birds[0]), np.concatenate([other, one], axis=2))
    assert all(map(np.array_equal, apart(np.concatenate([one, other], axis=2)), [one, other]))


def test_fidelity_is_the_mean_of_each_conditions_own(birds: list[np.ndarray]) -> None:
    both = Several(canny=Canny(), tile=Tile())
    wanted = both(birds[0])
    found = both.judge(birds[1], wanted)
    own = {"canny": Canny().judge(birds[1], wanted[..., :3]), "tile": Tile().judge(birds[1], wanted[..., 3:])}
    assert found.parts == own
    assert found.fidelity == found.published == pytest.approx((own["canny"].fidelity + own["tile"].fidelity) / 2)
    assert both.judge(birds[0], wanted).fidelity == pytest.approx(1)
    # Whether a drawing or its maps are compared is the same where conditions judge by a drawing's map.
    edges = Several(one=Canny(), two=Canny(50, 100))
    assert edges.compare(edges(birds[1]), edges(birds[0])) == edges.judge(birds[1], edges(birds[0]))


def test_it_shows_each_map_as_its_condition_does(birds: list[np.ndarray]) -> None:
    class Dark(Canny):
        def display(self, control_map: np.ndarray) -> np.ndarray:
            return 255 - control_map

    stacked = Several(canny=Canny(), dark=Dark())(birds[0])
    shown = Several(canny=Canny(), dark=Dark()).display(stacked)
    assert np.array_equal(shown[..., :3], stacked[..., :3]) and np.array_equal(shown[..., 3:], 255 - stacked[..., 3:])


def test_one_condition_is_the_only_part_of_itself() -> None:
    canny, tile = Canny(), Tile()
    assert parts_of(canny) == [canny]
    assert parts_of(Several(canny=canny, tile=tile)) == [canny, tile]


@pytest.mark.parametrize("conditions", [{}, {"canny": Canny()}, {"canny": Canny(), "none": Given()}])
def test_what_is_not_several_is_refused(conditions: dict[str, Condition]) -> None:
    with pytest.raises(InputError, match="condition"):
        Several(**conditions)


def test_a_list_of_conditions_is_each_under_its_own_name() -> None:
    both = composed("condition=[canny, depth]", "condition.canny.low=50")
    assert [name for name in both.condition if name != "_target_"] == ["canny", "depth"]
    assert both.condition.canny == {**composed("condition=canny").condition, "low": 50}
    assert both.condition.depth == composed("condition=depth").condition
    swapped = composed("condition=[depth,canny]").condition
    assert [name for name in swapped if name != "_target_"] == ["depth", "canny"]


def test_other_arguments_stay_as_they_were_typed() -> None:
    assert run.together(["condition=canny", "callback=[default,four_prompts]", "-m", "seed=0,1"]) == [
        "condition=canny", "callback=[default,four_prompts]", "-m", "seed=0,1",
    ]  # fmt: skip
    assert run.together(["condition=[canny]"]) == ["condition=canny"]
    assert run.together(["condition=canny,[canny,depth]"]) == ["condition=canny,canny+depth"]
    # What a sweep remembers of itself can be typed again.
    assert run.together(["condition=canny+depth"]) == ["condition=canny+depth"]
    with pytest.raises(InputError, match="twice"):
        run.together(["condition=[canny,canny]"])
