"""The card of a set of weights: where they come from and how good they are."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_card(folder: Path, title: str, introduction: str, facts: Mapping[str, Any], shown: str) -> Path:
    """Write README.md into a folder of weights: an introduction, the facts that are known, the sha256 of each file.

    `samples.png` is shown if it is there, and `shown` says what is to be seen on it.
    """
    lines = [f"# {title}", "", introduction, ""]
    if (folder / "samples.png").is_file():
        lines += [f"![{shown}](samples.png)", ""]
    lines += ["| fact | value |", "|---|---|"]
    lines += [f"| {name} | {_show(value)} |" for name, value in facts.items() if value is not None]
    lines += ["", "| file | sha256 |", "|---|---|"]
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != "README.md":
            lines.append(
                f"| {file.relative_to(folder).as_posix()} | `{hashlib.sha256(file.read_bytes()).hexdigest()}` |"
            )
    card = folder / "README.md"
    card.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return card


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
