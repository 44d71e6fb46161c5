"""The learning rate as a function of the step."""

import math

import pytest

from cnx.errors import InputError
from cnx.schedule import Schedule, cosine, linear


@pytest.mark.parametrize("decay", [linear, cosine])
def test_a_decay_goes_from_1_to_0_without_rising(decay) -> None:
    values = [decay(left / 100) for left in range(100, -1, -1)]
    assert values[0] == pytest.approx(1) and values[-1] == pytest.approx(0) and decay(0.5) == pytest.approx(0.5)
    assert values == sorted(values, reverse=True)


def test_a_constant_rate_is_exactly_what_was_given() -> None:
    assert {Schedule()(step, 100) for step in range(100)} == {1.0}
    assert Schedule()(10**6, math.inf) == Schedule()(10**6, -1) == 1.0


def test_a_cooldown_falls_over_the_last_part_alone() -> None:
    schedule = Schedule(cooldown=0.2)
    assert [schedule(step, 100) for step in (0, 80)] == [1.0, pytest.approx(1.0)]
    assert schedule(90, 100) == pytest.approx(0.5) and schedule(99, 100) == pytest.approx(0.05)


def test_a_warm_up_rises_to_the_whole_rate_and_decay_begins_behind_it() -> None:
    schedule = Schedule(warmup_steps=4, cooldown=1, decay=cosine)
    assert [schedule(step, 12) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(4, 12) == 1.0 and schedule(8, 12) == pytest.approx(0.5)
    assert schedule(11, 12) == pytest.approx((1 - math.cos(math.pi / 8)) / 2)
    assert Schedule(warmup_steps=20, cooldown=1)(9, 10) == 0.5, "a run that ends in its warm-up never falls"


def test_more_steps_change_only_what_is_left() -> None:
    short, long = ([Schedule(3, 0.5)(step, steps) for step in range(10)] for steps in (20, 40))
    assert short == long


def test_what_cannot_be_is_said_in_a_line() -> None:
    for settings, named in (({"warmup_steps": -1}, "warmup_steps=-1"), ({"cooldown": 1.5}, "cooldown=1.5")):
        with pytest.raises(InputError, match=named):
            Schedule(**settings)
    for endless in (math.inf, -1):
        with pytest.raises(InputError, match="give trainer.max_steps"):
            Schedule(cooldown=1)(0, endless)
