"""What differs between runs, found in their resolved configurations."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

ABSENT = "–"  # a key that this run's configuration does not have
# Where things are, who is told and how often the run is looked at, not what is done.
INCIDENTAL = (
    "choices",
    "task",
    "resume",
    "runs",
    "name",
    "logger",
    "data.cache",
    "data.cache_folder",
    "callback.checkpoint",
    "callback.probe.every",
    "callback.probe.gain_every",
)
# What looks at a run and does not touch it: that it does is no difference, how it does is one.
LOOKING = ("callback.interrupt", "callback.probe", "callback.prompts")
INCIDENTAL_CHOICES = ("task", "logger", "callback", "sweep", "launcher", "sweeper")
# Groups whose options set keys of another's.
PLACES = {"average": "callback", "stop": "callback"}
# What a setting is where nothing is asked of it.
NEUTRAL = ("null", "false", "0", "[]", "{}")


def find_varied(configs: Sequence[Mapping[str, Any]], versions: Sequence[str | None] = ()) -> dict[str, list[str]]:
    """What differs between `configs`: {column: its value in each run, as text}, in the order in which to show it.

    Choices of groups come first (`init`), then single keys (`optimizer.lr`), then `seed`. Left out is what a differing
    choice brings with it, unless runs with the same choice differ in it too, and what repeats another column: the
    configurations are resolved, so an interpolation shows as a second key with the same values. Where such keys do not
    end alike, they share a column under both names, so that nothing is hidden that only looks like an interpolation.

    `versions`: the commit that each run was made by, None where it is not known. What some versions have and the others
    have not is left out too, where it is off or a copy: nothing was done by it that older code did not do.
    """
    choices = [{group: show(option) for group, option in (config.get("choices") or {}).items()} for config in configs]
    flat = [_flatten(config) for config in configs]
    chosen = _differing(choices, _choice_order)
    differing = {
        key: values
        for key, values in _differing(flat, _key_order).items()
        if not _is_in(key, INCIDENTAL)
        and not (_is_in(key, LOOKING) and len({*values} - {ABSENT}) == 1)
        and not (_came_with(versions, values) and (_is_off(values) or _is_copy(key, flat)))
    }
    for group, values in list(chosen.items()):
        brings = (known for key, known in differing.items() if _place(key) == PLACES.get(group, group))
        if _came_with(versions, values) and (
            _is_off(values) or not any(_lack(known) == _lack(values) for known in brings)
        ):
            del chosen[group]  # an option for what older code did without one
    columns = {group: values for group, values in chosen.items() if group not in INCIDENTAL_CHOICES}
    brought = {
        key: values
        for key, values in differing.items()
        if any(_determines(taken, values) for group, taken in chosen.items() if PLACES.get(group, group) == _place(key))
    }
    for key, values in differing.items():
        if key in brought or any(_repeats(key, values, *known) for known in brought.items()):
            continue
        first = next(
            (name for name, known in columns.items() if _repeats(key, values, name.split(" = ")[0], known)), ""
        )
        if not first:
            columns[key] = values
        elif not any(name.split(".")[-1] == key.split(".")[-1] for name in first.split(" = ")):
            columns = {f"{name} = {key}" if name == first else name: known for name, known in columns.items()}
    return dict(sorted(columns.items(), key=lambda column: column[0] == "seed"))


def brought(columns: Mapping[str, list[str]], column: str) -> bool:
    """Whether a column of `find_varied` says nothing that the chosen experiment does not: each sets one value of it."""
    return column not in ("experiment", "seed") and _determines(columns.get("experiment"), columns[column])


def show(value: Any) -> str:
    """A value of a configuration as text, equal for equal values: 1e-3 and 0.001 are one."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return " ".join(f"{key} {show(part)}" for key, part in value.items()) or "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def short_names(columns: Iterable[str]) -> dict[str, str]:
    """What to call each of the columns of `find_varied` where there is little room: `optimizer.lr` is `lr`.

    The whole key stays where two columns end alike.
    """
    firsts = {column: column.split(" = ")[0] for column in columns}
    ends = [first.split(".")[-1] for first in firsts.values()]
    unique = {end for end in ends if ends.count(end) == 1}
    return {column: end if (end := first.split(".")[-1]) in unique else first for column, first in firsts.items()}


def _differing(runs: Sequence[Mapping[str, str]], order: Callable[[str], Any]) -> dict[str, list[str]]:
    """The keys that have not one value in all runs, each with its values."""
    every = {
        key: [run.get(key, ABSENT) for run in runs] for key in sorted({key for run in runs for key in run}, key=order)
    }
    return {key: values for key, values in every.items() if len(set(values)) > 1}


def _came_with(versions: Sequence[str | None], values: list[str]) -> bool:
    """Whether some versions have a setting and the others have it not. Local changes make no other version."""
    each = zip(versions, values, strict=bool(versions))
    made = [(version.removesuffix("-dirty"), value) for version, value in each if version]
    having = {version for version, value in made if value != ABSENT}
    lacking = {version for version, value in made if value == ABSENT}
    return bool(having and lacking) and not having & lacking


def _is_in(key: str, places: Iterable[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _is_off(values: list[str]) -> bool:
    return set(values) - {ABSENT} <= {*NEUTRAL} and len(set(values)) == 2


def _is_copy(key: str, flat: Sequence[Mapping[str, str]]) -> bool:
    """Whether it repeats the key that it ends in: data.scenes.condition.low is condition.low."""
    own = [run for run in flat if key in run]
    ends = (key.split(".", n)[-1] for n in range(1, key.count(".")))
    return any(all(run.get(end) == run[key] for run in own) for end in ends)


def _lack(values: list[str]) -> list[bool]:
    return [value == ABSENT for value in values]


def _place(key: str) -> str:
    return key.split(".")[0]


def _determines(choice: list[str] | None, values: list[str]) -> bool:
    """Whether runs with the same choice have the same value."""
    return choice is not None and len(set(zip(choice, values, strict=True))) == len(set(choice))


def _repeats(key: str, values: list[str], other: str, known: list[str]) -> bool:
    """Whether `key` can be the same setting as `other`; switches and seeds agree by chance, unless named as copies."""
    by_chance = other == "seed" or set(values) <= {"true", "false", "null", ABSENT}
    return values == known and (key.endswith(f".{other}") or not by_chance)


def _choice_order(group: str) -> tuple[int, str]:
    first = ("experiment", "base", "model", "init", "data", "condition", "objective")
    return (first.index(group) if group in first else len(first), group)


def _key_order(key: str) -> tuple[int, str]:
    return (key.count("."), key)  # the shallowest of several that repeat each other is the one to show


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = show(value)
    return flat
