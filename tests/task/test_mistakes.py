"""What is wrong with a command line is said in one line, with a remedy."""

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from cnx.errors import InputError
from cnx.task.mistakes import check_values, line_for_mistake
from small_runs import REPOSITORY

MISTAKES = {
    "condition=cany": "condition=cany: there is none of that name; did you mean canny? (canny, ",
    "experiment=attempt7_bird": "did you mean attempt7_birds?",
    "callback=[default,four]": "callback=four: there is none of that name",
    "micro_bacth=3": "micro_bacth: there is no such key; did you mean micro_batch?",
    "trainer.max_step=3": "trainer.max_step: there is no such key; did you mean max_steps?",
    "prompt_dropout=[": "prompt_dropout=[: cannot be read as key=value",
    "trainer": "trainer: cannot be read as key=value",
    "init=sd_copy,scratch": "init=sd_copy,scratch: -m tries one value after another",
    "+micro_batch=3": "'micro_batch=3'",
    "~foo": "'foo' does not exist",
}


@pytest.fixture(autouse=True)
def conf() -> Iterator[None]:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        yield


@pytest.mark.parametrize("argument", MISTAKES)
def test_what_cannot_be_composed_is_named_in_one_line(argument: str) -> None:
    with pytest.raises(HydraException) as mistake:
        compose("config", [argument])
    line = line_for_mistake(mistake.value)
    assert line and MISTAKES[argument] in line and "\n" not in line


def test_an_error_of_another_kind_keeps_its_traceback() -> None:
    assert line_for_mistake(KeyError("a bug")) is None


@pytest.mark.parametrize(
    "argument, wanted",
    [
        ("prompt_dropout=half", "prompt_dropout=half: a number is wanted, as 0.5 is"),
        ("compile=maybe", "compile=maybe: true or false is wanted, as false is"),
        ("trainer.max_steps=", "trainer.max_steps=: a number is wanted, as 4735 is"),
        ("seed=null", "seed=null: a number is wanted, as 0 is"),
        ("data.batch_size=null", "data.batch_size=null: a number is wanted, as 8 is"),
        ("compile=null", "compile=null: true or false is wanted, as false is"),
    ],
)
def test_text_or_null_in_place_of_a_number_is_refused(argument: str, wanted: str) -> None:
    overrides = ["experiment=attempt7_birds", "base=tiny", argument]
    with pytest.raises(InputError) as refused:
        check_values(compose("config", overrides), overrides)
    assert str(refused.value) == wanted


@pytest.mark.parametrize(
    "argument",
    [
        "prompt_dropout=1",
        "data.limit=null",
        "callback.probe.budget=null",
        "experiment=data_size data.limit=null",
        "model=large_scale model.unlocked_lr=null",
        "sweep=accumulation trainer.max_epochs=null",
        "~callback.probe",
        "~warmup_steps",
        "model=large_scale model.unlock=null",
        "seed=${micro_batch}",
        "trainer.devices=auto",
        "default_prompt=7",
        "init=scratch",
    ],
)
def test_what_fits_is_not(argument: str) -> None:
    overrides = argument.split()
    check_values(compose("config", overrides), overrides)
