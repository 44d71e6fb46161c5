from typing import Any

from cnx.report.varied import find_varied, short_names


def config(**changes: Any) -> dict[str, Any]:
    """A resolved configuration with interpolations: optimizer.lr from base, the probe's sampler, data.seed."""
    choices = {"init": changes.pop("init", "sd_copy"), "base": changes.pop("base", "tiny"), "logger": "none"}
    lr, seed, steps = changes.pop("lr", 3e-4), changes.pop("seed", 0), changes.pop("steps", 20)
    whole: dict[str, Any] = {
        "choices": choices,
        "init": {"_target_": choices["init"]} | changes.pop("init_values", {}),
        "base": {"path": choices["base"], "learning_rate": lr},
        "optimizer": {"lr": changes.pop("own_lr", lr)},
        "sampler": {"steps": steps},
        "callback": {"probe": {"sampler": {"steps": steps}}},
        "data": {"seed": seed, "cache": "cache"},
        "seed": seed,
        "runs": "runs",
    }
    return whole | changes


def test_groups_come_first_then_keys_then_the_seed() -> None:
    configs = [config(seed=0), config(seed=1, init="scratch"), config(seed=2, own_lr=1e-3)]
    assert find_varied(configs) == {
        "init": ["sd_copy", "scratch", "sd_copy"],
        "optimizer.lr": ["0.0003", "0.0003", "0.001"],
        "seed": ["0", "1", "2"],
    }


def test_what_a_choice_brings_is_not_shown_again_but_what_differs_under_one_choice_is() -> None:
    assert list(find_varied([config(), config(base="sd15", lr=1e-5)])) == ["base"], "base.learning_rate, optimizer.lr"
    gaussian = [config(init="gaussian", init_values={"std": std}) for std in (0.01, 0.02)]
    assert find_varied([config(), *gaussian]) == {
        "init": ["sd_copy", "gaussian", "gaussian"],
        "init.std": ["–", "0.01", "0.02"],
    }


def test_a_copy_is_not_shown_and_another_key_with_the_same_values_is_named_beside_it() -> None:
    assert list(find_varied([config(steps=20), config(steps=50)])) == ["sampler.steps"]
    assert list(find_varied([config(lr=1e-4), config(lr=1e-3)])) == ["base.learning_rate = optimizer.lr"]


def test_switches_that_agree_by_chance_are_both_shown() -> None:
    configs = [config(a={"one": switch}, b={"two": switch}) for switch in (True, False)]
    assert list(find_varied(configs)) == ["a.one", "b.two"]


def test_a_key_that_follows_the_seed_is_shown_unless_it_is_a_copy() -> None:
    configs = [config(seed=seed, a={"size": seed}) for seed in (0, 1)]
    assert list(find_varied(configs)) == ["a.size", "seed"]


def test_equal_values_written_differently_and_places_are_no_difference() -> None:
    configs = [config(lr=0.001, runs="a"), config(lr=1e-3, runs="b", data={"seed": 0, "cache": "elsewhere"})]
    assert find_varied(configs) == {}


def test_what_newer_code_alone_has_is_left_out_unless_its_value_differs() -> None:
    choices = {"init": "sd_copy", "base": "tiny", "average": "null"}
    new = [config(seed=seed, compile=False, choices=choices) for seed in (1, 2)]
    assert list(find_varied([config(), *new], ["old", "new", "new"])) == ["seed"]
    assert list(find_varied([config(), *new], ["new"] * 3)) == ["average", "compile", "seed"], "a key that was added"
    other = config(seed=3, compile=True, choices=choices)
    assert find_varied([config(), *new, other], ["old", "new", "new", "new"])["compile"] == [
        "–",
        "false",
        "false",
        "true",
    ]


def test_what_newer_code_does_that_older_did_not_is_a_difference() -> None:
    """Runs with the average and without it are no seeds of one arm, though the older code had no average."""
    plain, averaged = config(), config(seed=1)
    averaged["choices"] = averaged["choices"] | {"average": "ema", "optimizer": "adamw"}
    averaged["callback"] = averaged["callback"] | {"ema": {"_target_": "cnx.callback.EMA", "decay": 0.9999}}
    assert find_varied([plain, averaged], ["old", "new"]) == {"average": ["–", "ema"], "seed": ["0", "1"]}


def test_no_average_is_no_difference_whatever_else_only_the_newer_runs_have() -> None:
    """A callback that came along with them is in the place where an average would be; it is not brought by none."""
    plain, stopped = config(), config(seed=1)
    stopped["choices"] = stopped["choices"] | {"average": "null"}
    stopped["callback"] = stopped["callback"] | {"own": {"patience": 16}}
    assert list(find_varied([plain, stopped], ["old", "new"])) == ["callback.own.patience", "seed"]


def test_only_another_commit_is_another_version() -> None:
    plain, new = config(), config(buckets=None)
    for versions in (["a", "a-dirty"], [None, "a"], [None, None]):
        assert list(find_varied([plain, new], versions)) == ["buckets"]
    assert find_varied([plain, new], ["a", "b-dirty"]) == {}
    assert find_varied([plain, new, new], ["a", "b", None]) == {}, "what is not known speaks for neither"


def test_options_that_set_keys_among_the_callbacks_bring_them() -> None:
    runs = [config(), config(), config()]
    for run, average, stop in zip(runs, ("null", "ema", "null"), ("null", "null", "flat"), strict=True):
        run["choices"] = run["choices"] | {"average": average, "stop": stop}
    runs[1]["callback"] = runs[1]["callback"] | {"ema": {"decay": 0.9999}}
    runs[2]["callback"] = runs[2]["callback"] | {"flat": {"probes": 4}}
    assert list(find_varied(runs)) == ["average", "stop"]


def test_what_watches_a_run_is_no_difference_but_how_the_probe_measures_is() -> None:
    runs: list[dict[str, Any]] = [config(callback={"probe": {"items": 16}}) for _ in range(3)]
    for run, callback in zip(runs, ("default", "none", None), strict=True):
        run["choices"] = run["choices"] | ({"callback": callback} if callback else {})  # of a list Hydra notes nothing
    runs[1]["callback"] = {}
    runs[2]["callback"]["prompts"] = {"items": 16}
    assert find_varied(runs) == {}
    assert list(find_varied([runs[0], runs[0] | {"callback": {"probe": {"items": 8}}}])) == ["callback.probe.items"]
    assert find_varied([run | {"choices": {}} for run in (runs[0], runs[2])]) == {}, "lists in both"
    patient = runs[0] | {"callback": {"own": {"patience": 3}}}
    assert list(find_varied([runs[0], patient])) == ["callback.own.patience"], "what may touch a run is one"


def test_lists_of_settings_read_as_words() -> None:
    phases = [{"when": "converged", "links": "all", "lr": 1e-4}]
    shown = find_varied([config(phases=[]), config(phases=phases)])["phases"]
    assert shown == ["[]", "[when converged links all lr 0.0001]"]


def test_short_names_stay_unique() -> None:
    assert short_names(["init", "vae.lr", "unet.lr", "base.learning_rate = optimizer.rate"]) == {
        "init": "init",
        "vae.lr": "vae.lr",
        "unet.lr": "unet.lr",
        "base.learning_rate = optimizer.rate": "learning_rate",
    }
