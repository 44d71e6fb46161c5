"""The true maps of drawn scenes: they fit the pictures, and each other."""

import hashlib
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from cnx.condition import Canny, Condition, Depth, Given, Hough, Normal, Pose, Segmentation
from cnx.condition.ade20k import number
from cnx.condition.skeleton import BIRD, DOG
from cnx.data.folder import load_pair, read_folder
from cnx.data.synthetic import Birds, Dogs, Fill50K, generate
from cnx.data.synthetic.birds import mask
from cnx.errors import InputError

SOME = range(0, 7_574, 631)
TRUE = [Depth(), Normal(), Segmentation()]
ANIMAL, SKY, SEA, HILL, BALL, WALL = (number(name) for name in ("animal", "sky", "sea", "hill", "ball", "wall"))


class Negative(Condition):
    """A condition of which a scene knows nothing."""

    white = licence = measure = ""

    def __call__(self, image):
        return 255 - image

    def compare(self, drawn, wanted):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("scenes", "drawn"),
    [
        (Dogs(), "c3f750b82de9fcfd337bc8a5f3f9b68b2d045740f385fb1a3871d9ad43b563dd"),
        (Birds(), "ab86edac541f433d670639bf723c2e098463d5febdc38fead6ef39dc2fcede98"),
        (Fill50K(), "87c47798e5e8c5f5d3ebaeebe25dba9cb6dec824172a9aec9ea200014012d5d1"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_version_1_draws_what_it_always_drew(scenes, drawn):
    """Bases, results and folders rest on these pixels: who changes them raises `version`."""
    found = hashlib.sha256()
    for index in range(0, scenes.count, scenes.count // 24):
        pair = scenes.draw(index, 128)
        found.update(pair.target.tobytes())
        found.update(pair.source.tobytes())
    assert scenes.version == 1 and found.hexdigest() == drawn


@pytest.mark.parametrize("scenes", [Birds(), Dogs(), Fill50K()], ids=lambda s: s.name)
def test_normals_are_unit_vectors_that_face_the_viewer_and_nearness_is_a_share(scenes):
    for index in SOME:
        truth = scenes.geometry(index, 64)
        np.testing.assert_allclose(np.linalg.norm(truth.normal, axis=-1), 1, atol=1e-5)
        assert (truth.normal[..., 2] >= 0).all()
        assert truth.nearness.min() >= 0 and truth.nearness.max() <= 1
        assert truth.nearness.shape == truth.classes.shape == truth.normal.shape[:2] == (64, 64)


def test_birds_are_where_the_picture_has_them_and_nearer_than_all_else():
    for index in SOME:
        scene, truth = Birds().scene(index), Birds().geometry(index, 128)
        birds = np.any([mask(bird, 128) > 127 for bird in scene.birds], 0)
        assert np.array_equal(truth.classes == ANIMAL, birds)
        if not birds.all():
            assert truth.nearness[birds].min() >= truth.nearness[~birds].max()


def test_a_larger_bird_is_nearer():
    for index in range(0, 400, 7):
        scene, truth = Birds().scene(index), Birds().geometry(index, 128)
        near = [np.median(truth.nearness[mask(bird, 128) > 127]) for bird in scene.birds]
        order = sorted(range(len(near)), key=lambda at: scene.birds[at].scale)
        scales = [scene.birds[at].scale for at in order]
        if all(b > 1.4 * a for a, b in zip(scales, scales[1:], strict=False)):
            assert [near[at] for at in order] == sorted(near)


def test_classes_cover_the_picture_and_are_those_that_the_caption_names():
    for index in SOME:
        ground, truth = Birds().scene(index).backdrop.ground, Birds().geometry(index, 64)
        assert set(np.unique(truth.classes)) == {ANIMAL, SKY} | {"sea": {SEA}, "hills": {HILL}, "none": set()}[ground]
    assert set(np.unique(Fill50K().geometry(3, 64).classes)) == {BALL, WALL}


def test_a_sky_faces_the_viewer_a_sea_faces_up_and_hills_come_nearer_as_they_are_drawn():
    for index in range(0, 60):
        scene, truth = Birds().scene(index), Birds().geometry(index, 64)
        assert (truth.normal[truth.classes == SKY] == (0, 0, 1)).all() and not truth.nearness[
            truth.classes == SKY
        ].any()
        assert (truth.normal[truth.classes == SEA] == (0, 1, 0)).all()
        column = np.where(truth.classes == ANIMAL, np.nan, truth.nearness)[:, 0]
        column = column[~np.isnan(column)]
        assert (np.diff(column) >= 0).all(), scene.backdrop.ground


def test_joints_lie_on_their_bird():
    for index in SOME:
        scene, truth = Birds().scene(index), Birds().geometry(index, 128)
        assert truth.skeletons is not None and len(truth.skeletons) == len(scene.birds)
        for bird, joints in zip(scene.birds, truth.skeletons, strict=True):
            assert set(joints) == set(BIRD.joints)
            near = cv2.dilate(mask(bird, 128), np.ones((7, 7)), borderValue=0) > 127
            for name, (x, y) in joints.items():
                assert near[int(y), int(x)], (index, name)


def test_dogs_stand_on_a_level_ground_that_is_as_near_as_they_are():
    for index in range(0, 20_579, 1_715):
        scene, truth = Dogs().scene(index), Dogs().geometry(index, 128)
        assert truth.skeletons is not None and len(truth.skeletons) == len(scene.dogs)
        body = cv2.dilate((truth.classes == ANIMAL).astype(np.uint8), np.ones((5, 5))) > 0
        for joints in truth.skeletons:
            assert set(joints) == set(DOG.joints)
            assert all(body[int(y), int(x)] for x, y in joints.values()), index
        level = (truth.normal == (0, 1, 0)).all(-1)
        assert level[-1].any() and (np.diff(truth.nearness[:, 0][level[:, 0]]) >= 0).all()
        dog = scene.dogs[-1]
        foot, side = int(dog.at[1] * 128), 0 if dog.at[0] > 0.5 else 127
        assert truth.nearness[foot, side] == pytest.approx(min(1, 1.3 * dog.scale), abs=0.05)


def test_left_and_right_change_sides_with_the_mirror():
    """The wing that is seen nearer is the right one of a bird that flies to the right, whoever is mirrored."""
    from cnx.data.synthetic.anatomy import figure

    pose = Birds().scene(3).birds[0].pose
    plain, mirrored = figure(replace(pose, mirror=False)), figure(replace(pose, mirror=True))
    for name, (x, y) in plain.joints.items():
        side = {"left": "right", "right": "left"}.get(name.split()[0])
        other = name.replace(name.split()[0], side) if side else name
        assert mirrored.joints[other] == pytest.approx((-x, y))


def test_a_ball_bulges_towards_the_viewer_and_faces_away_from_its_middle():
    circle, truth = Fill50K().scene(5), Fill50K().geometry(5, 128)
    x, y = (np.arange(128) + 0.5) / 128 - circle.x, (np.arange(128) + 0.5) / 128 - circle.y
    ball = np.hypot(x[None], y[:, None]) < 0.9 * circle.radius
    outwards = np.stack([np.broadcast_to(x[None], (128, 128)), np.broadcast_to(-y[:, None], (128, 128))], -1)
    np.testing.assert_allclose(truth.normal[ball][:, :2], outwards[ball] / circle.radius, atol=0.03)
    rows, columns = np.nonzero(truth.nearness == truth.nearness.max())
    assert np.hypot(x[columns], y[rows]).max() < 0.1 * circle.radius


def test_lines_are_straight_edges_of_what_is_seen():
    for index in SOME:
        truth = Birds().geometry(index, 128)
        assert truth.lines is not None and len(truth.lines)
        layers = (truth.nearness * 255).astype(np.uint8) // 4 + truth.classes  # hills are told apart by nearness
        rim = cv2.morphologyEx(layers, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
        near = cv2.dilate(rim.astype(np.uint8), np.ones((3, 3))) > 0
        for x0, y0, x1, y1 in truth.lines:
            assert np.hypot(x1 - x0, y1 - y0) >= 128 / 12 - 1
            share = np.linspace(0, 1, 20)
            x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
            assert near[np.clip(y.astype(int), 0, 127), np.clip(x.astype(int), 0, 127)].all(), index


def test_the_horizon_of_a_sea_is_a_line_and_a_circle_has_none():
    for index in range(60):
        scene = Birds().scene(index)
        if scene.backdrop.ground == "sea":
            x0, y0, x1, y1 = max(Birds().geometry(index, 128).lines, key=lambda line: line[2] - line[0])
            assert y0 == y1 == pytest.approx(128 * scene.backdrop.horizon, abs=1e-3) and x1 - x0 > 30
    assert Fill50K().geometry(0, 64).lines is None


def test_a_circle_has_no_skeleton_and_that_is_said_at_once(tmp_path):
    with pytest.raises(InputError, match="no skeleton.*data=birds"):
        generate(Fill50K(condition=Pose()), tmp_path, 32, count=2)


def test_nothing_straight_is_in_circles_and_that_is_said_at_once(tmp_path):
    with pytest.raises(InputError, match="nothing.*straight.*data=birds"):
        generate(Fill50K(condition=Hough()), tmp_path, 32, count=2)


def test_lsd_finds_most_of_the_true_lines():
    scores = [Hough().judge(pair.target, pair.source) for pair in (Birds(condition=Hough()).draw(i, 128) for i in SOME)]
    assert np.mean([score.fidelity for score in scores]) > 0.6


@pytest.mark.parametrize("condition", [*TRUE, Pose(), Hough()], ids=lambda c: type(c).__name__)
def test_true_maps_stand_beside_the_pictures_that_all_conditions_share(condition, tmp_path):
    scenes = Birds(condition=condition)
    folder = generate(scenes, tmp_path, 64, count=3)
    assert folder == tmp_path / type(condition).__name__.lower() and not (folder / "target").exists()
    for index, item in enumerate(read_folder(folder)):
        source, target = load_pair(item, 64)
        assert np.array_equal(source, condition.draw(scenes.geometry(index, 64)))
        assert np.array_equal(source, scenes.draw(index, 64).source)
        assert np.array_equal(target, Birds().draw(index, 64).target)
        assert item.prompt == scenes.prompt(index)
        assert item.target.resolve() == (tmp_path / "target" / f"{index}.png").resolve()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert generate(Birds(), tmp_path, 64, count=3) == tmp_path
    assert generate(scenes, tmp_path, 64, count=3) == folder
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}


def test_maps_that_no_scene_knows_are_the_annotators(tmp_path):
    folder = generate(Birds(condition=Negative()), tmp_path, 32, count=2)
    for item in read_folder(folder):
        source, target = load_pair(item, 32)
        assert np.array_equal(source, 255 - target)
    fine = generate(Birds(condition=Canny(50, 100)), tmp_path, 32, count=2)
    assert len({folder, fine, tmp_path}) == 3
    source, target = load_pair(read_folder(fine)[0], 32)
    assert np.array_equal(source, Canny(50, 100)(target))


@pytest.mark.parametrize("condition", [None, Canny(), Given()])
def test_the_sets_own_maps_need_no_folder(condition, tmp_path):
    assert generate(Birds(condition=condition), tmp_path, 32, count=2) == tmp_path
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name not in ("source", "target")]
    assert "condition" not in json.loads((tmp_path / "generated.json").read_text())


def test_maps_of_pictures_that_were_replaced_are_replaced_too(tmp_path):
    generate(Birds(condition=Depth()), tmp_path, 32, count=2)
    folder = generate(Birds(condition=Depth(), version=2), tmp_path, 48, count=2)
    source, target = load_pair(read_folder(folder)[1], 48)
    assert source.shape == target.shape == (48, 48, 3)
    assert np.array_equal(source, Birds(condition=Depth()).draw(1, 48).source)
