"""A room knows only rooms below it: the contract is in pyproject.toml."""

from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_the_order_of_the_rooms_holds(repository: Path) -> None:
    assert lint_imports(str(repository / "pyproject.toml"), no_cache=True, no_logo=True) == EXIT_STATUS_SUCCESS
