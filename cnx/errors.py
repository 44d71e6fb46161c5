"""The one error that is the user's to mend."""

from typing import Any

from hydra.errors import InstantiationException
from omegaconf.errors import MissingMandatoryValue


class InputError(Exception):
    """Bad input: the message is one line that names the file or key, the value, and the remedy.

    `run.py` prints the message without a traceback and exits with status 1.
    """


def check_whole(key: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raise InputError unless `value`, of the configuration's `key`, is a whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        until = "" if most is None else f" and at most {most:,}"
        raise InputError(f"{key}={value}: must be a whole number of at least {least}{until}")


def line_for_user(error: Exception) -> str | None:
    """The line that says what the user is to mend; None if `error` is not of that kind."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, InputError):
        return str(error.__cause__)  # Hydra wraps what a constructor raises
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: {error.full_key}=..."
    return str(error) if isinstance(error, InputError) else None
