"""What differs between runs, found in their resolved configurations."""

from collections.abc import Iterable, Mapping, Sequence
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
INCIDENTAL_CHOICES = ("task", "logger", "callback", "sweep", "launcher", "sweeper")


def find_varied(configs: Sequence[Mapping[str, Any]], versions: Sequence[str] = ()) -> dict[str, list[str]]:
    """What differs between `configs`: {column: its value in each run, as text}, in the order in which to show it.

    Choices of groups come first (`init`), then single keys (`optimizer.lr`), then `seed`. Left out is what a differing
    choice brings with it, unless runs with the same choice differ in it too, and what repeats another column: the
    configurations are resolved, so an interpolation shows as a second key with the same values. Where such keys do not
    end alike, they share a column under both names, so that nothing is hidden that only looks like an interpolation.

    `versions`: of the code that each run was made by. What one version has and another has not, with one value
    wherever it is, is left out too: the older code could not do otherwise.
    """
    choices = [dict(config.get("choices") or {}) for config in configs]
    chosen: dict[str, list[str]] = {}
    for group in sorted({group for taken in choices for group in taken}, key=_choice_order):
        values = [show(taken[group]) if group in taken else ABSENT for taken in choices]
        if len(set(values)) > 1 and not _came_with(versions, values):
            chosen[group] = values
    columns = {group: values for group, values in chosen.items() if group not in INCIDENTAL_CHOICES}

    flat = [_flatten(config) for config in configs]
    differing: dict[str, list[str]] = {}
    for key in sorted({key for values in flat for key in values}, key=_key_order):
        values = [values.get(key, ABSENT) for values in flat]
        incidental = any(key == one or key.startswith(f"{one}.") for one in INCIDENTAL)
        if len(set(values)) > 1 and not incidental and not _came_with(versions, values):
            differing[key] = values
    brought = {key: values for key, values in differing.items() if _determines(chosen.get(key.split(".")[0]), values)}
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


def _came_with(versions: Sequence[str], values: list[str]) -> bool:
    """Whether some versions have a setting, of one value, and the others have it not."""
    lacking = ABSENT in values and len(set(values)) == 2
    return lacking and len(set(versions)) > 1 and _determines(list(versions), values)


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
