"""What is wrong with a command line, in one line."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationKeyError, OmegaConfBaseException

from cnx.errors import InputError

# Numbers that null may stand for: no limit, all, what the device or another key says.
MAY_BE_NULL = {
    "batch_size",
    "callback.probe.budget",
    "condition.levels",
    "condition.softedge.levels",
    "memory.device_gib",
    "model.unlocked_lr",
    "sample",
}
QUOTES = """text with spaces, commas, = or brackets in it goes in quotes, and those in others: 'key="a, b"'"""


def line_for_mistake(error: BaseException) -> str | None:
    """The line that says what of a command line could not be composed, and the remedy; None for any other error."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        options = error.options or []
        among = f" ({', '.join(options)})" if options else ""
        return f"{group}={option}: there is none of that name{_nearest(option, options)}{among}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value; {QUOTES}"
    composing = isinstance(error, ConfigCompositionException)
    if composing and isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        parent, last = cause.parent_node, cause.full_key.rpartition(".")[2]
        keys = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
        return f"{cause.full_key}: there is no such key{_nearest(last, keys)} (python run.py --cfg job shows all)"
    if isinstance(error, InterpolationKeyError):
        return f"{_one_line(str(error))} (${{...}} stands for another key's value)"
    if composing:
        if given := re.match("Ambiguous value for argument '(.*)'", str(error)):
            return f"{given[1]}: -m tries one value after another, [a,b] is a list, and {QUOTES}"
        return _one_line(str(error))
    return None


def check_values(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raise InputError if `overrides` give text or null where the configuration has a number or a truth.

    `cfg` is the configuration with them.
    """
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [each for each in parsed if not loader.get_group_options(each.key_or_group)]
    suspects = [
        each.key_or_group
        for each in values
        if isinstance(_at(cfg, each.key_or_group), str)
        or (each.value() is None and not each.is_delete() and each.key_or_group not in MAY_BE_NULL)
    ]
    if not suspects:
        return
    chosen = [each for each in parsed if each not in values]
    plain = loader.load_configuration("config", [str(each.input_line) for each in chosen], RunMode.RUN)
    # An experiment may set a number where null is as good: what may be null is seen without it.
    alone = [str(each.input_line) for each in chosen if each.key_or_group not in ("experiment", "sweep")]
    bare = loader.load_configuration("config", alone, RunMode.RUN) if len(alone) < len(chosen) else plain
    for key in suspects:
        value = _at(cfg, key)
        default = _at(bare if value is None else plain, key)
        if isinstance(default, int | float) and value != "auto":
            kind = "true or false" if isinstance(default, bool) else "a number"
            given = "null" if value is None else value
            raise InputError(f"{key}={given}: {kind} is wanted, as {str(default).lower()} is")


def check_job(master: DictConfig, overrides: Sequence[str]) -> None:
    """Raise InputError if a sweep's run cannot be composed, or as `check_values` does."""
    loader = GlobalHydra.instance().config_loader()
    try:
        cfg = loader.load_sweep_config(master, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(line_for_mistake(error)) from error
    check_values(cfg, overrides)


def _at(cfg: DictConfig, key: str) -> Any:
    """What stands at `key`, or None where nothing does or that follows from what is not given yet."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _nearest(name: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""
