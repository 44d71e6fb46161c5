"""Depth, normals, segmentation: what is drawn of a scene, what is compared, what the shipped detector sees."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from cnx.condition import Depth, GeometricCondition, Geometry, Normal, Pose, Segmentation, ade20k
from cnx.condition.normal import normal_of
from cnx.data.synthetic import Birds, Fill50K
from cnx.errors import InputError

CONDITIONS = [Depth(), Normal(), Segmentation(), Pose()]
NAMED = {"argvalues": CONDITIONS, "ids": lambda c: type(c).__name__}


def scene(normal: tuple[float, float, float] = (0, 0, 1), nearness: float = 0.0, kind: str = "sky") -> Geometry:
    shape = (32, 48)
    return Geometry(
        np.full(shape, nearness, np.float32),
        np.broadcast_to(np.array(normal, np.float32), (*shape, 3)),
        np.full(shape, ade20k.number(kind), np.uint8),
        (),
    )


def test_near_is_white_and_far_is_black() -> None:
    assert (Depth().draw(scene(nearness=1)) == 255).all() and not Depth().draw(scene(nearness=0)).any()


@pytest.mark.parametrize(
    ("faces", "colour"),
    [
        ((0, 0, 1), (128, 128, 255)),
        ((-1, 0, 0), (255, 128, 128)),
        ((1, 0, 0), (0, 128, 128)),
        ((0, 1, 0), (128, 255, 128)),
    ],
    ids=["viewer", "left", "right", "up"],
)
def test_red_faces_left_green_up_and_blue_the_viewer(faces, colour) -> None:
    assert (Normal().draw(scene(normal=faces)) == colour).all()


def test_classes_have_ade20ks_colours_and_can_be_read() -> None:
    assert len(ade20k.NAMES) == len(set(ade20k.NAMES)) == 150
    every = np.arange(150, dtype=np.uint8).reshape(10, 15)
    read = ade20k.read(ade20k.paint(every))
    differ = {ade20k.NAMES[n] for n in every[read != every]}
    assert differ == {"skyscraper"}  # it has the colour of a road
    assert tuple(ade20k.paint(np.array([[2]], np.uint8))[0, 0]) == (6, 230, 230)  # sky
    assert ade20k.read(np.full((1, 1, 3), 200, np.uint8))[0, 0] == ade20k.UNKNOWN


def test_a_map_without_ade20ks_colours_is_refused() -> None:
    photo = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="palette"):
        Segmentation().compare(photo, photo)


@pytest.mark.parametrize("condition", **NAMED)
def test_truth_agrees_with_itself_more_than_with_another_scene(condition: GeometricCondition) -> None:
    maps = [condition.draw(Birds().geometry(index, 64)) for index in (3, 20, 71)]
    for wanted in maps:
        own = condition.compare(wanted, wanted)
        assert own.fidelity == pytest.approx(1, abs=1e-6)
        for other in maps:
            if other is not wanted:
                assert 0 <= condition.compare(other, wanted).fidelity < 0.97
    assert all(control_map.dtype == np.uint8 and control_map.shape == (64, 64, 3) for control_map in maps)


def test_the_published_numbers_are_in_their_units() -> None:
    near, far = Depth().draw(scene(nearness=1)), Depth().draw(scene(nearness=0))
    assert Depth().compare(near, far)[:2] == (0, 255)
    up, out = Normal().draw(scene((0, 1, 0))), Normal().draw(scene())
    assert Normal().compare(up, out).published == pytest.approx(90, abs=0.6) and Normal().compare(up, out).fidelity == 0
    sky, sea = Segmentation().draw(scene(kind="sky")), Segmentation().draw(scene(kind="sea"))
    half = np.concatenate([sky[:16], sea[16:]])
    assert Segmentation().compare(half, sky)[:2] == (pytest.approx(0.5), pytest.approx(50))


def test_a_picture_goes_through_its_own_drawing_and_reading_of_normals() -> None:
    geometry = Fill50K().geometry(5, 128)
    tilted = np.degrees(np.arccos(geometry.normal[..., 2]))
    control_map = Normal().draw(geometry)
    assert Normal().compare(control_map, control_map).published < 1e-3
    assert Normal().compare(Normal().draw(scene()), control_map[:32, :48]).published == pytest.approx(
        tilted[:32, :48].mean(), abs=1
    )


@pytest.mark.parametrize(
    ("slope", "faces"), [((1, 0), (-1, 0)), ((-1, 0), (1, 0)), ((0, 1), (0, 1)), ((0, -1), (0, -1))]
)
def test_normals_of_depth_face_away_from_what_is_near(slope, faces) -> None:
    """Nearer to the right (x) faces left, nearer at the bottom (y, down) faces up; no slope faces the viewer."""
    y, x = np.mgrid[:64, :64] / 64
    normal = normal_of((0.5 + 0.4 * (slope[0] * (x - 0.5) + slope[1] * (y - 0.5))).astype(np.float32))[32, 32]
    assert np.sign(np.round(normal[:2], 3)).tolist() == list(faces)
    assert normal[2] > 0 and np.linalg.norm(normal) == pytest.approx(1)
    np.testing.assert_allclose(normal_of(np.full((64, 64), 0.3, np.float32)), np.broadcast_to((0, 0, 1), (64, 64, 3)))
    steep = normal_of((0.8 * x).astype(np.float32), relief=0.5)[32, 32]
    assert -steep[0] / steep[2] == pytest.approx(0.4, rel=1e-3)  # 0.8 a side, half a side deep


# What the shipped detector must do at least; its card has what it does.
LEAST = {"Depth": 0.88, "Normal": 0.78, "Segmentation": 0.8, "Pose": 0.3}


@pytest.mark.parametrize("condition", **NAMED)
def test_the_shipped_detector_sees_what_scenes_show(condition: GeometricCondition, repository: Path) -> None:
    scores = []
    for index in range(7_000, 7_012):
        picture, truth = Birds().draw(index, 128).target, condition.draw(Birds().geometry(index, 128))
        scores.append(condition.judge(picture, truth).fidelity)
    assert np.mean(scores) > LEAST[type(condition).__name__]


@pytest.mark.parametrize("size", [(64, 64), (128, 192), (256, 256)])
@pytest.mark.parametrize("condition", **NAMED)
def test_a_detected_map_has_the_size_of_its_picture_whatever_that_is(condition: GeometricCondition, size) -> None:
    picture = cv2.resize(Birds().draw(71, 256).target, size[::-1], interpolation=cv2.INTER_AREA)
    found = condition(picture)
    assert found.shape == (*size, 3) and found.dtype == np.uint8


def test_nothing_is_seen_in_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert Depth()(noise).mean() < 12 and not Pose()(noise).any()


def test_a_detector_that_is_not_whole_says_so(tmp_path: Path, repository: Path) -> None:
    settings = (repository / "pretrained" / "tiny_scenes" / "config.json").read_text()
    (tmp_path / "config.json").write_text(settings)
    with pytest.raises(InputError, match="no whole detector.*experiment=detector_tiny"):
        Depth(str(tmp_path))(np.zeros((64, 64, 3), np.uint8))
