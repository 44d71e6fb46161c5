"""The drawn data sets: the same everywhere, true to their captions, and whole on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cnx.condition.ade20k import number
from cnx.data.synthetic import Birds, Dogs, Fill50K, generate
from cnx.data.synthetic.birds import PLUMAGE, mask
from cnx.data.synthetic.dogs import COATS
from cnx.data.synthetic.fill50k import CSS, rgb
from cnx.errors import InputError

REPOSITORY = Path(__file__).parents[2]
SOME = range(0, 7_574, 151)  # spread over the data set, so that every mood and species occurs
NUMBER = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("scenes", [Birds(), Dogs(), Fill50K()], ids=lambda s: s.name)
def test_an_item_is_the_same_whatever_was_drawn_before_and_however_many_there_are(scenes):
    first = scenes.draw(7, 64)
    scenes.draw(3, 32)
    again = type(scenes)(count=10).draw(7, 64)
    assert np.array_equal(first.source, again.source)
    assert np.array_equal(first.target, again.target)
    assert first.prompt == again.prompt == scenes.prompt(7)
    assert first.target.shape == first.source.shape == (64, 64, 3)
    assert first.target.dtype == first.source.dtype == np.uint8


@pytest.mark.parametrize("scenes", [Birds(), Dogs(), Fill50K()], ids=lambda s: s.name)
def test_every_size_shows_the_same_scene(scenes):
    for index in range(0, 100, 20):
        large, small = (scenes.draw(index, size).target for size in (512, 128))
        shrunk = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(int) - small).mean() < 2


@pytest.mark.parametrize("scenes", [Birds(), Dogs(), Fill50K()], ids=lambda s: s.name)
def test_captions_are_short_varied_and_in_the_vocabulary(scenes):
    words = scenes.vocabulary()
    prompts = [scenes.prompt(index) for index in range(0, scenes.count, scenes.count // 200)]
    assert len(words) == len(set(words)) < 200
    assert {word for prompt in prompts for word in prompt.split()} <= set(words)
    assert max(len(prompt.split()) for prompt in prompts) <= 16
    assert len(set(prompts)) > len(prompts) / 3


def test_birds_are_as_many_as_the_caption_says_and_do_not_merge():
    for index in SOME:
        scene = Birds().scene(index)
        said = [NUMBER[word] for word in scene.prompt.replace("a flock of", "").replace("a pair of", "two").split()[:1]]
        assert said == [len(scene.birds)]
        masks = [mask(bird, 128) > 127 for bird in scene.birds]
        apart = sum(m.sum() for m in masks)
        assert np.any(masks, 0).sum() > 0.97 * apart
        assert min(m.sum() for m in masks) > 100  # none is a speck


def test_birds_have_the_colour_that_the_caption_names():
    for index in SOME:
        scene, pair = Birds().scene(index), Birds().draw(index, 128)
        inside = np.any([cv2.erode(mask(bird, 128), np.ones((3, 3))) > 127 for bird in scene.birds], 0)
        middle = np.median(pair.target[inside], 0)
        nearest = min(PLUMAGE, key=lambda name: np.abs(np.array(PLUMAGE[name]) - middle).sum())
        assert nearest == scene.colour
        assert scene.colour in scene.prompt.split()


def test_the_sky_is_the_one_that_the_caption_names():
    for index in SOME:
        scene, prompt = Birds().scene(index), Birds().prompt(index)
        top, ground = Birds().draw(index, 64).target[0].mean(0), scene.backdrop.ground
        assert ("sea" in prompt or "ocean" in prompt) == (ground == "sea")
        assert ("hills" in prompt) == (ground == "hills")
        if "night" in prompt or "stars" in prompt or "moon" in prompt:
            assert top.mean() < 60
        if "blue sky" in prompt:
            assert top[2] > top[0] + 60
        if "pink sky" in prompt:
            assert top[0] > top[1] + 30 and top[2] > top[1]
        if "stars" in prompt:
            assert len(scene.backdrop.stars) >= 4
        if "moon" in prompt:
            assert scene.backdrop.disc


def test_birds_control_is_canny_of_the_picture_and_follows_the_birds():
    for index in SOME:
        scene, pair = Birds().scene(index), Birds().draw(index, 128)
        edges = cv2.Canny(cv2.cvtColor(pair.target, cv2.COLOR_RGB2GRAY), 100, 200)
        assert np.array_equal(pair.source, np.repeat(edges[..., None], 3, 2))
        birds = np.any([mask(bird, 128) > 127 for bird in scene.birds], 0).astype(np.uint8)
        rim = birds - cv2.erode(birds, np.ones((3, 3)), borderValue=1) > 0
        found = cv2.dilate(edges, np.ones((3, 3))) > 0
        assert (found & rim).sum() > 0.95 * rim.sum()


def test_dogs_are_as_many_and_of_the_coat_that_the_caption_says_and_stand_on_the_ground():
    for index in range(0, 20_579, 411):
        scene, pair, truth = Dogs().scene(index), Dogs().draw(index, 128), Dogs().geometry(index, 128)
        words = scene.prompt.split()
        assert words[:3] == ["a", "photography", "of"] and len(scene.dogs) == (2 if "dogs" in words else 1)
        dogs = cv2.erode((truth.classes == number("animal")).astype(np.uint8), np.ones((3, 3))) > 0
        middle = np.median(pair.target[dogs], 0)
        assert min(COATS, key=lambda name: np.abs(np.array(COATS[name]) - middle).sum()) == scene.coat in words
        ground = truth.classes == number({"beach": "sand", "sand": "sand"}.get(words[-1], "animal"))
        for dog in scene.dogs:
            x, y = dog.at
            assert 0 < x < 1 and scene.bands()[-1][3] < y < 1
        assert ground.any() or words[-1] not in ("beach", "sand")
        edges = cv2.Canny(cv2.cvtColor(pair.target, cv2.COLOR_RGB2GRAY), 100, 200)
        assert np.array_equal(pair.source, np.repeat(edges[..., None], 3, 2))


def test_fill50k_shows_its_two_colours_and_the_outline():
    for index in range(0, 50_000, 2_111):
        circle, pair = Fill50K().scene(index), Fill50K().draw(index, 128)
        y, x = (np.mgrid[:128, :128] + 0.5) / 128
        distance = np.hypot(x - circle.x, y - circle.y) - circle.radius
        assert (pair.target[distance < -0.015] == rgb(circle.colour)).all()
        assert (pair.target[distance > 0.015] == rgb(circle.ground)).all()
        assert (pair.source[np.abs(distance) > 0.025] == 0).all()
        assert (pair.source[np.abs(distance) < 0.002] > 90).all()
        assert pair.prompt == f"{circle.colour} circle with {circle.ground} background"


def test_css_names_are_distinct_colours():
    assert len(set(CSS.values())) == len(CSS) == 139  # 148 names, nine of them said twice
    assert rgb("pale golden rod") == (238, 232, 170)


def test_the_folder_holds_what_was_drawn(tmp_path):
    root = generate(Birds(), tmp_path / "ünïcode", 32, count=5)
    lines = [json.loads(line) for line in (root / "prompt.json").read_text().splitlines()]
    assert len(lines) == 5
    for index, line in enumerate(lines):
        pair = Birds().draw(index, 32)
        assert line["prompt"] == pair.prompt
        for key in ("source", "target"):
            image = cv2.imdecode(np.frombuffer((root / line[key]).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
            assert np.array_equal(image[..., ::-1], getattr(pair, key))


def test_a_complete_folder_is_left_alone(tmp_path, monkeypatch):
    generate(Birds(), tmp_path, 32, count=5)
    before = contents(tmp_path)
    monkeypatch.setattr(Birds, "draw", lambda *_: pytest.fail("drawn again"))
    monkeypatch.setattr(Birds, "scene", lambda *_: pytest.fail("thought up again"))
    generate(Birds(), tmp_path, 32, count=5)
    assert contents(tmp_path) == before


def test_an_interrupted_generation_is_completed_to_the_byte(tmp_path, monkeypatch):
    whole = contents(generate(Birds(), tmp_path / "whole", 32, count=12))
    root, draw = tmp_path / "halves", Birds.draw

    def breaks(self, index, size):
        if index == 7:
            raise KeyboardInterrupt
        return draw(self, index, size)

    with monkeypatch.context() as patch:
        patch.setattr(Birds, "draw", breaks)
        with pytest.raises(KeyboardInterrupt):
            generate(Birds(), root, 32, count=12, workers=1)
    assert not (root / "prompt.json").exists()
    stray = root / "target" / ".9.png.1.tmp"
    stray.write_bytes(b"half a picture")
    os.utime(stray, (0, 0))
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr(Birds, "draw", lambda self, i, size: drawn.append(i) or draw(self, i, size))
        generate(Birds(), root, 32, count=12)
    assert drawn == [7, 8, 9, 10, 11]
    assert contents(root) == whole


def test_missing_and_empty_files_are_drawn_again(tmp_path):
    whole = contents(generate(Birds(), tmp_path, 32, count=6))
    (tmp_path / "source" / "2.png").unlink()
    (tmp_path / "target" / "4.png").write_bytes(b"")
    (tmp_path / "prompt.json").unlink()
    assert contents(generate(Birds(), tmp_path, 32, count=6)) == whole


def test_a_folder_grows_without_drawing_its_items_again_and_never_shrinks(tmp_path):
    generate(Birds(), tmp_path / "grown", 32, count=3)
    first = (tmp_path / "grown" / "target" / "0.png").stat().st_mtime_ns
    grown = generate(Birds(), tmp_path / "grown", 32, count=6)
    assert (grown / "target" / "0.png").stat().st_mtime_ns == first
    assert contents(grown) == contents(generate(Birds(), tmp_path / "once", 32, count=6))
    generate(Birds(), grown, 32, count=2)  # another run may be reading the rest
    assert len((grown / "prompt.json").read_text().splitlines()) == 6


def test_processes_that_want_the_same_folder_at_once_leave_it_whole(tmp_path):
    counts = (3, 40, 12)
    root = tmp_path / "shared"
    code = f"from cnx.data.synthetic import Birds, generate; generate(Birds(), {str(root)!r}, 32, count=%d)"
    started = [subprocess.Popen([sys.executable, "-c", code % count], cwd=REPOSITORY) for count in counts]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert contents(root) == contents(generate(Birds(), tmp_path / "alone", 32, count=40))


def test_another_size_version_or_data_set_replaces_the_folder(tmp_path):
    generate(Birds(), tmp_path / "a", 32, count=6)
    generate(Birds(), tmp_path / "a", 48, count=4)
    assert contents(tmp_path / "a") == contents(generate(Birds(), tmp_path / "b", 48, count=4))
    generate(Fill50K(), tmp_path / "a", 48, count=4)
    assert contents(tmp_path / "a") == contents(generate(Fill50K(), tmp_path / "c", 48, count=4))
    generate(Fill50K(version=2), tmp_path / "a", 48, count=4)
    assert json.loads((tmp_path / "a" / "generated.json").read_text())["version"] == 2


def test_processes_draw_what_one_process_draws(tmp_path):
    many = contents(generate(Fill50K(), tmp_path / "many", 16, count=200, workers=2))
    assert many == contents(generate(Fill50K(), tmp_path / "one", 16, count=200, workers=1))


@pytest.mark.parametrize("theirs", ["prompt.json", "source/0.png"])
def test_a_folder_of_the_users_own_is_refused(tmp_path, theirs):
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("mine")
    with pytest.raises(InputError, match="not generated here.*choose another folder"):
        generate(Birds(), tmp_path, 32, count=2)
    assert contents(tmp_path) == {theirs: b"mine"}
