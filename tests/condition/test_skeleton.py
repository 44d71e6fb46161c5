import colorsys

import cv2
import numpy as np
import pytest

from cnx.condition import Agreement, Pose
from cnx.condition.skeleton import BIRD, DOG, FACE, HANDS, PERSON, draw_skeletons, read_points


def spread(names: tuple[str, ...], size: int) -> dict[str, tuple[float, float]]:
    """Joints around a circle, so that none hides another."""
    turns = 2 * np.pi * np.arange(len(names)) / len(names)
    return {
        name: (size * (0.5 + 0.4 * np.cos(t)), size * (0.5 + 0.4 * np.sin(t)))
        for name, t in zip(names, turns, strict=True)
    }


@pytest.mark.parametrize("anatomy", [PERSON, BIRD, DOG], ids=["person", "bird", "dog"])
def test_every_joint_has_a_colour_of_its_own_and_limbs_join_joints(anatomy) -> None:
    assert len({anatomy.colour(n) for n in range(len(anatomy.joints))}) == len(anatomy.joints)
    assert {joint for limb in anatomy.limbs for joint in limb} == set(anatomy.joints)
    assert len(set(anatomy.limbs)) == len(anatomy.limbs)


def test_a_person_has_openposes_colours() -> None:
    assert [PERSON.colour(n) for n in (0, 1, 2, 4, 17)] == [
        (255, 0, 0),
        (255, 85, 0),
        (255, 170, 0),
        (170, 255, 0),
        (255, 0, 85),
    ]
    assert len(PERSON.joints) == 18 and len(PERSON.limbs) == 17
    for n in range(18):
        assert colorsys.rgb_to_hsv(*(c / 255 for c in PERSON.colour(n))) == pytest.approx((n / 18, 1, 1), abs=2e-3)


@pytest.mark.parametrize("size", [128, 512])
@pytest.mark.parametrize("anatomy", [PERSON, BIRD, DOG], ids=["person", "bird", "dog"])
def test_what_is_drawn_can_be_read(anatomy, size: int) -> None:
    joints = spread(anatomy.joints, size)
    points = read_points(draw_skeletons([joints], size, size))
    assert len(points) == len(joints)
    for x, y in joints.values():
        assert min(np.hypot(p.x - x, p.y - y) for p in points) < 1
    assert all(point.reach == pytest.approx(0.1 * 0.8 * size, rel=0.1) for point in points)


def test_a_body_agrees_with_itself_and_less_with_itself_moved() -> None:
    wanted = draw_skeletons([spread(BIRD.joints, 128)], 128, 128)
    scores = [Pose().compare(np.roll(wanted, shift, axis=1), wanted) for shift in (0, 4, 30)]
    assert scores[0] == Agreement(1, 100) and scores[1] == Agreement(1, 100)
    assert scores[2].fidelity < 0.2


def test_a_second_body_that_nobody_wants_costs_fidelity_but_not_pck() -> None:
    small = spread(BIRD.joints, 64)
    beside = {name: (x + 64, y + 64) for name, (x, y) in small.items()}
    wanted, crowded = (draw_skeletons(bodies, 128, 128) for bodies in ([small], [small, beside]))
    assert Pose().compare(crowded, wanted) == Agreement(pytest.approx(2 / 3), 100)
    assert Pose().compare(wanted, crowded) == Agreement(pytest.approx(2 / 3), 50)


def test_an_empty_map_agrees_with_an_empty_map_alone() -> None:
    empty, full = np.zeros((64, 64, 3), np.uint8), draw_skeletons([spread(BIRD.joints, 64)], 64, 64)
    assert Pose().compare(empty, empty).fidelity == 1
    assert Pose().compare(empty, full).fidelity == Pose().compare(full, empty).fidelity == 0


def test_a_map_that_was_shrunk_still_tells_its_joints() -> None:
    large = draw_skeletons([spread(BIRD.joints, 512)], 512, 512)
    small = cv2.resize(large, (256, 256), interpolation=cv2.INTER_AREA)
    assert Pose().compare(small, draw_skeletons([spread(BIRD.joints, 256)], 256, 256)).fidelity == 1


def test_hands_and_face_are_drawn_and_a_missing_joint_leaves_its_limbs_out() -> None:
    body = spread(PERSON.joints, 512)
    plain = draw_skeletons([body], 512, 512)
    hand = {name: (256 + 3 * n, 250.0) for n, name in enumerate(HANDS["left"])}
    face = {name: (200 + 3 * n, 300.0) for n, name in enumerate(FACE)}
    whole = draw_skeletons([body | hand | face], 512, 512)
    assert (whole[300, 200:400] == 255).all(-1).sum() > len(FACE) and not (plain[300, 200:400] == 255).all(-1).any()
    assert whole[250, 256:310].any() and (whole != plain).any(-1)[245:256].any()
    del body["neck"]
    assert draw_skeletons([body], 512, 512).any(-1).sum() < plain.any(-1).sum()


def test_joints_outside_of_the_picture_do_no_harm() -> None:
    draw_skeletons([{"beak": (-20.0, 5.0), "head": (500.0, 5.0)}], 32, 32)
