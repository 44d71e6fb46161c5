"""What a run draws under no, insufficient, conflicting and perfect prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cnx.errors import InputError
from cnx.report.drawings import drawings_page
from cnx.report.grid import map_columns, save_image
from cnx.report.saved import SavedRun

HEADS = {"none": "no prompt", "insufficient": "insufficient", "conflicting": "conflicting", "perfect": "perfect"}

Pictures = UInt8[np.ndarray, "n h w 3"]


@dataclass(frozen=True)
class PromptResults:
    """The results of a run under several kinds of prompt, {kind: ...} in the paper's order.

    Attributes:
        results: control_fidelity (with floor and ceiling), standard_error, degenerate, items and prompts.
        control, target, drawn: pictures of the held-out items.
    """

    results: dict[str, dict[str, Any]]
    control: Pictures
    target: Pictures
    drawn: dict[str, Pictures]

    @property
    def fidelity(self) -> dict[str, float]:
        """Calibrated control fidelity under each kind."""
        return {mode: result["control_fidelity"]["calibrated"] for mode, result in self.results.items()}

    def head(self, mode: str) -> str:
        """What stands over a column of pictures."""
        return f"{HEADS[mode]}: {self.fidelity[mode]:z.2f}"

    def caption(self, item: int) -> str:
        """The prompts of an item that are its own."""
        prompts = {mode: result["prompts"][item] for mode, result in self.results.items()}
        told = [
            f"{HEADS[mode]}: {prompts[mode] or '(empty)'}" for mode in ("conflicting", "perfect") if mode in prompts
        ]
        return "; ".join(told) or f"item {item + 1}"


def read_prompt_ablation(run: SavedRun) -> PromptResults | None:
    """What prompts.json and samples/prompts.npz of a run folder say.

    None where they are not there, or are of before the run went on to more optimizer steps.
    """
    saved, file = run.prompts, run.folder / "samples" / "prompts.npz"
    if not saved or not file.is_file():
        return None
    if run.summary and run.summary.get("optimizer_steps") != saved.get("optimizer_steps"):
        return None
    results = {mode: saved["prompt_modes"][mode] for mode in HEADS if mode in saved["prompt_modes"]}
    with np.load(file) as arrays:
        return PromptResults(results, arrays["control"], arrays["target"], {mode: arrays[mode] for mode in results})


def prompt_page(ablation: PromptResults, title: str, rows: int = 6) -> Image.Image:
    """Rows: the first items, under their prompts; columns: control map, target, one for each kind of prompt."""
    shown = slice(rows)
    return drawings_page(
        [*map_columns(ablation.control[shown]), ("target", ablation.target[shown])],
        [(ablation.head(mode), pictures[shown]) for mode, pictures in ablation.drawn.items()],
        [ablation.caption(item) for item in range(len(ablation.control[shown]))],
        title,
    )


def prompt_grid(run_folder: str | Path) -> Path:
    """Draw `prompts.png` of a run folder from its saved results (`prompt_page`), and return its path.

    Raises InputError if the folder holds none.
    """
    folder = Path(run_folder)
    ablation = read_prompt_ablation(SavedRun(folder))
    if ablation is None:
        raise InputError(f"{folder}: no prompts.json and samples/prompts.npz of its last step; run task=evaluate first")
    absolute = folder.resolve()
    title = f"{absolute.parent.name} / {absolute.name}: calibrated control fidelity under each kind of prompt"
    path = folder / "prompts.png"
    save_image(prompt_page(ablation, title), path)
    return path


def prompt_wall(runs: Sequence[SavedRun], labels: Sequence[str]) -> Image.Image | None:
    """One row a run, as in figure 8 of the ControlNet paper: the same item under each kind of prompt.

    The item is the first of the first run; a run that has not drawn it shows its own first. None if no run has been
    drawn under several kinds of prompt; kinds that not all of the runs have are left out.
    """
    pairs = [(found, label) for run, label in zip(runs, labels, strict=True) if (found := read_prompt_ablation(run))]
    modes = [mode for mode in HEADS if pairs and all(mode in found.drawn for found, _ in pairs)]
    if not modes:
        return None
    first = pairs[0][0]
    places = [_place_of(first.control[0], found.control) for found, _ in pairs]
    chosen = [(found, place) for (found, _), place in zip(pairs, places, strict=True)]
    maps = [found.control[place] for found, place in chosen]
    most = max(own.shape[-1] for own in maps)
    # Blank where a run has fewer maps than another.
    maps = [np.pad(own, ((0, 0), (0, 0), (0, most - own.shape[-1])), constant_values=255) for own in maps]
    return drawings_page(
        [
            *map_columns(np.stack(maps)),
            ("target", np.stack([found.target[place] for found, place in chosen])),
        ],
        [(HEADS[mode], np.stack([found.drawn[mode][place] for found, place in chosen])) for mode in modes],
        [label for _, label in pairs],
        f"The same held-out item under each kind of prompt. {first.caption(0)}",
    )


def _place_of(control_map: UInt8[np.ndarray, "h w 3"], control: Pictures) -> int:
    return next((place for place, other in enumerate(control) if np.array_equal(control_map, other)), 0)
