import numpy as np

from cnx.condition import FakeScribble, Scribble


def test_another_photo_has_another_chance_and_the_same_photo_the_same(birds: list[np.ndarray]) -> None:
    nearly = birds[0].copy()
    nearly[0, 0, 0] ^= 1
    maps = [FakeScribble()(photo) for photo in (birds[0], birds[0].copy(), nearly)]
    assert np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[0], maps[2])
    assert set(np.unique(maps[0])) == {0, 255}


def test_strokes_are_left_out_and_stray_but_not_far(birds: list[np.ndarray]) -> None:
    for photo in birds:
        near = Scribble(threshold=0.15, width=60)(photo) > 0
        strokes = FakeScribble()(photo) > 0
        assert strokes.any() and near[strokes].mean() > 0.95
    left_out = [(FakeScribble(masked=masked, shake=0)(birds[0]) > 0).sum() for masked in (0.0, 1.0)]
    assert left_out[1] < left_out[0]


def test_a_drawing_is_judged_without_chance(birds: list[np.ndarray]) -> None:
    fake = FakeScribble()
    plain = Scribble()(birds[0])
    assert fake.judge(birds[0], plain)[:2] == (1.0, 1.0) != fake.compare(fake(birds[0]), plain)[:2]
