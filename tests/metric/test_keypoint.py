import pytest

from cnx.metric import Point, match_points

BODY = [Point(0, 10, 10, 3), Point(1, 20, 10, 3), Point(0, 40, 40, 3)]


def test_a_body_finds_itself_in_any_order() -> None:
    assert match_points(BODY[::-1], BODY) == (1, 1)


@pytest.mark.parametrize(("shift", "found"), [(0, 1), (3, 1), (3.1, 0)])
def test_a_joint_may_be_off_by_its_reach(shift: float, found: float) -> None:
    moved = [point._replace(x=point.x + shift) for point in BODY]
    assert match_points(moved, BODY) == (found, found)


def test_joints_of_another_kind_do_not_count() -> None:
    assert match_points([point._replace(kind=point.kind + 5) for point in BODY], BODY) == (0, 0)


def test_one_drawn_joint_stands_for_one_and_more_than_are_wanted_cost_precision() -> None:
    crowded = [Point(0, 10, 10, 3), Point(0, 11, 10, 3)]
    assert match_points(crowded[:1], crowded) == (0.5, 1)
    assert match_points(crowded, crowded[:1]) == (1, 0.5)
    # The first could take either; together they find both.
    assert match_points([Point(0, 12, 10, 9), Point(0, 8, 10, 9)], [Point(0, 10, 10, 2), Point(0, 14, 10, 2)]) == (1, 1)


def test_nothing_agrees_with_nothing_alone() -> None:
    assert match_points([], []) == (1, 1)
    assert match_points(BODY, []) == (1, 0)
    assert match_points([], BODY) == (0, 1)
