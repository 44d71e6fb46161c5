"""Self-contained HTML pages: one file with its pictures in it, which needs no network and no server."""

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cnx.errors import InputError
from cnx.report.comparison import Comparison, number
from cnx.report.curves import Curve, Panel, svg
from cnx.report.grid import map_columns, tile, tile_size
from cnx.report.prompts import HEADS, PromptResults, prompt_page, read_prompt_ablation
from cnx.report.saved import SavedRun
from cnx.report.table import Table
from cnx.report.varied import show
from cnx.report.wall import shared_items, spread

PAGES = Environment(
    loader=PackageLoader("cnx.report", "pages"),
    autoescape=True,  # prompts, names and paths are the user's
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
MOST_FRAMES = 30
MOST_WIDE = 16383  # px, WebP's limit


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: its data URL, its size in px, and what a reader hears instead of it."""

    source: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Film:
    """Frames side by side in one picture; `frames` holds (optimizer step, caption) of each."""

    picture: Picture
    frames: list[tuple[int, str]]


def run_report(folder: str | Path, items: int = 8) -> Path:
    """Write report.html of a run folder from its saved files, and return its path.

    The page holds the summary in words, the curves of fidelity, gain and loss, the first `items` held-out items with a
    slider over the steps, the numbers and the configuration. What a run has not saved (no probe, not finished) is left
    out, and said.

    Raises:
        InputError: the folder is no run folder.
    """
    run = SavedRun(Path(folder))
    if not run.config:
        raise InputError(f"{folder}: no config.yaml, so it is no run folder; runs are in runs/<experiment>/<time>")
    steps, fidelity, ablation = _frames(run), dict(run.fidelity), read_prompt_ablation(run)
    page = PAGES.get_template("run.html").render(
        title=f"{run.config.get('name', 'run')} / {run.name}",
        words=list(in_words(run)),
        figures=[svg(panel, f"figure{i}") for i, panel in enumerate(_run_panels(run))],
        steps=[(step, f"{_step(step)}, fidelity {number(fidelity.get(step), 'z.2f')}") for step in steps],
        items=list(_run_items(run, steps, items)),
        prompts=ablation and _picture(prompt_page(ablation, "", items), "Samples, a row per item, a column per prompt"),
        prompt_table=ablation and _prompt_table(ablation),
        tables=list(_run_tables(run)),
        config=(run.folder / "config.yaml").read_text(encoding="utf-8"),
    )
    path = run.folder / "report.html"
    write(path, page)
    return path


def comparison_page(
    comparison: Comparison, wall: Image.Image | None, prompts: Image.Image | None, out: Path, items: int = 4
) -> str:
    """The page of a comparison that is written into `out`, with `items` held-out items a run under the slider."""
    entries = [entry for entry in comparison.entries if entry.run.pictured()]
    reports = [(entry.label, entry.run.folder / "report.html") for entry in comparison.entries]
    return PAGES.get_template("comparison.html").render(
        title=comparison.title,
        tables=comparison.tables,
        notes=comparison.notes,
        links=[(label, quote(os.path.relpath(file, out))) for label, file in reports if file.is_file()],
        figures=[svg(panel, f"figure{i}") for i, panel in enumerate(comparison.panels())],
        steps=[(step, _step(step)) for step in sorted({step for entry in entries for step in _frames(entry.run)})],
        rows=list(_comparison_rows([entry.run for entry in entries], [entry.label for entry in entries], items)),
        wall=wall and _picture(wall, "Samples of one held-out item, a row per run, optimizer steps from left to right"),
        prompts=prompts
        and _picture(prompts, "Samples of one held-out item, a row per arm, a column per kind of prompt"),
    )


def write(path: Path, text: str) -> None:
    """Write a text so that `path` holds the whole of it or what was there before."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def in_words(run: SavedRun) -> Iterator[str]:
    """What became of a run, a sentence or two at a time."""
    summary, choices = run.summary, run.config.get("choices") or {}
    made_of = ", ".join(f"{group} {choices[group]}" for group in ("base", "model", "init") if choices.get(group))
    if not summary:
        yield f"{run.where[0].upper()}{run.where[1:]}. Made of {made_of}."
        return
    line = f"Made of {made_of}; seed {run.config.get('seed')}."
    if "train_items" in summary:
        line += (
            f" Trained on {summary['train_items']:,} pairs of {summary.get('data')} under "
            f"{summary.get('condition')} for {summary.get('optimizer_steps', 0):,} optimizer steps, in which it saw "
            f"{summary.get('samples_seen', 0):,} samples."
        )
    if "wall_seconds" in summary:
        line += (
            f" It took {summary['wall_seconds']:,.0f} s ({number(summary.get('images_per_second'), '.1f')} images/s)."
        )
    yield line
    if summary.get("stopped_because"):
        yield f"It was ended early, {summary['stopped_because']}."
    fidelity = summary.get("control_fidelity")
    if not fidelity:
        yield "Nothing measured control: the run had no probe."
        return
    yield (
        f"Control fidelity at the end is {fidelity['calibrated']:z.2f}, where 0 ignores the map and 1 is the best that "
        f"this VAE can draw (raw {fidelity['raw']:z.2f}, floor {fidelity['floor']:z.2f}, ceiling "
        f"{fidelity['ceiling']:z.2f}, over {fidelity['items']} held-out items)."
    )
    # Folders of before there were several conditions call it exact; they are all of edges.
    name = "published" if "published" in fidelity else "exact"
    if name in fidelity:
        last, floor, ceiling = (number(fidelity[f"{name}{of}"], "z.3g") for of in ("", "_floor", "_ceiling"))
        measure = fidelity.get("measure", "edge F1, pixel-exact")
        yield f"The literature's number is {last} (floor {floor}, ceiling {ceiling}): {measure}."
    if run.probe.get("degenerate"):
        yield "Floor and ceiling coincide: this base cannot show control, and its fidelity is 0 by definition."
    yield _convergence_sentence(summary)
    for phase in run.phases:
        when = "on convergence" if phase["when"] == "converged" else "as planned"
        changed = ", ".join(f"{key} {show(value)}" for key, value in phase["changed"].items())
        yield f"Phase {phase['phase']} began at step {phase['step']:,}, {when}: {changed}."


def _convergence_sentence(summary: Mapping[str, Any]) -> str:
    step, before = summary.get("convergence_step"), summary.get("convergence_after")
    if step is None:
        since = summary.get("convergence_unconfirmed")
        line = "It did not converge: no probe at 0.5 or more was followed by two more."
        if since is not None:
            line = f"It has been at 0.5 or more since step {since:,}, too late to say that it stays."
    else:
        since = f"; at the probe before, step {before:,}, it did not yet" if before is not None else ""
        lost = summary.get("convergence_lost")
        until = f"until step {lost:,}, where fidelity fell below 0.5 for good" if lost is not None else "on"
        line = f"It obeys from step {step:,} {until}; {step:,} is the convergence step{since}."
    crossed = [(level, summary.get(f"fidelity_{level}_step")) for level in (25, 75)]
    reached = [f"0.{level} at step {at:,}" for level, at in crossed if at is not None]
    never = [f"0.{level}" for level, at in crossed if at is None]
    parts = [f"reached {' and '.join(reached)}"] if reached else []
    parts += [f"never reached {' or '.join(never)}"] if never else []
    return f"{line} Fidelity {', and '.join(parts)}."


def _run_panels(run: SavedRun) -> Iterator[Panel]:
    converged, phases = run.summary.get("convergence_step"), [phase["step"] for phase in run.phases]
    losses = [(row["optimizer_step"], row["train/loss"]) for row in run.rows if "train/loss" in row]
    clock = "optimizer steps"
    if run.fidelity:
        curve = Curve("", "fidelity", run.fidelity, converged, phases)
        yield Panel([curve], clock, "calibrated control fidelity", level=0.5)
    if run.gain:
        yield Panel([Curve("", "gain", run.gain, phases=phases)], clock, "control gain", markers=len(run.gain) < 40)
    if losses:
        yield Panel([Curve("", "loss", losses, phases=phases)], clock, "training loss", markers=False)


def _run_items(run: SavedRun, steps: Sequence[int], items: int) -> Iterator[dict[str, Any]]:
    heldout = run.heldout
    if heldout is None or not steps:
        return
    samples, scores = [run.samples(step) for step in steps], [run.item_fidelity(step) for step in steps]
    for i, prompt in enumerate(heldout.prompts[:items]):
        still = [
            *(
                (_still(maps[i], f"{head.capitalize()} of item {i + 1}: {prompt}", lossless=True), head)
                for head, maps in map_columns(heldout.control)
            ),
            (_still(heldout.target[i], f"Target of item {i + 1}"), "target"),
            (_still(heldout.reconstruction[i], f"Target of item {i + 1} through the VAE"), "through the VAE"),
        ]
        captions = ["sample" if score is None else f"sample: {score[i]:z.2f}" for score in scores]
        film = _film(
            [drawn[i : i + 1] for drawn in samples],
            list(zip(steps, captions, strict=True)),
            f"Samples of item {i + 1}",
            side=128,
        )
        yield {"prompt": prompt, "still": still, "film": film}


def _run_tables(run: SavedRun) -> Iterator[Table]:
    if run.summary:
        yield Table("Summary", ["fact", "value"], [*_facts(run.summary)], {"fact", "value"})
    gains = dict(run.gain)
    if run.fidelity:
        rows = [
            [f"{step:,}", number(run.samples_seen.get(step), ",d"), f"{value:z.3f}", number(gains.get(step), "z.3f")]
            for step, value in run.fidelity
        ]
        yield Table("Probes", ["optimizer step", "samples seen", "fidelity", "control gain"], rows, set())


def _prompt_table(ablation: PromptResults) -> Table:
    rows = []
    for mode, result in ablation.results.items():
        fidelity = result["control_fidelity"]
        numbers = [fidelity[name] for name in ("calibrated", "raw", "floor", "ceiling")]
        rows.append([HEADS[mode], *(number(value, "z.2f") for value in numbers)])
    heads = ["prompt", "fidelity", "raw", "floor", "ceiling"]
    return Table("Fidelity under each kind of prompt", heads, rows, {"prompt"})


def _facts(summary: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    for name, value in summary.items():
        if isinstance(value, dict):
            yield from _facts(value, f"{prefix}{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield [prefix + name, f"{value:,}"]
        else:
            yield [prefix + name, number(value, ".4g") if isinstance(value, float | None) else str(value)]


def _comparison_rows(runs: Sequence[SavedRun], labels: Sequence[str], items: int) -> Iterator[dict[str, Any]]:
    """Control maps, each run's film, targets: once around all runs if they share items, else around each."""
    shared = shared_items(runs)
    together = bool(shared and shared[0])
    for i, (run, label, places) in enumerate(zip(runs, labels, shared, strict=True)):
        heldout = run.heldout
        assert heldout is not None
        chosen = (places if together else list(range(len(heldout.prompts))))[:items]
        prompts = "; ".join(heldout.prompts[place] for place in chosen)
        if i == 0 or not together:
            for head, maps in map_columns(heldout.control[chosen]):
                yield _strip_row(head, maps, f"Control maps of: {prompts}", lossless=True)
        fidelity = dict(run.fidelity)
        captions = [(step, f"{_step(step)}: fidelity {number(fidelity.get(step), 'z.2f')}") for step in _frames(run)]
        frames = [run.samples(step)[chosen] for step, _ in captions]
        yield {"label": label, "film": _film(frames, captions, f"Samples of {label}", side=96)}
        if i == len(runs) - 1 or not together:
            yield _strip_row("target", heldout.target[chosen], f"Targets of: {prompts}")


def _strip_row(label: str, pictures: UInt8[np.ndarray, "n h w 3"], alt: str, lossless: bool = False) -> dict[str, Any]:
    picture = _picture(_side_by_side(pictures, tile_size(pictures, least=128, most=128)), alt, lossless)
    return {"label": label, "film": None, "picture": picture}


def _frames(run: SavedRun) -> list[int]:
    """The steps to show: all with pictures, or some of very many."""
    return spread(run.pictured(), MOST_FRAMES)


def _step(step: int) -> str:
    return f"step {step:,}"


def _film(frames: Sequence[UInt8[np.ndarray, "n h w 3"]], captions: list[tuple[int, str]], of: str, side: int) -> Film:
    """Frames of `n` pictures side by side, each at most `side` px, and less where the film would be too wide."""
    n = len(frames[0])
    size = tile_size(frames[0], least=1, most=min(side, MOST_WIDE // (n * len(frames))))
    image = _side_by_side(np.concatenate(frames), size)
    steps = ", ".join(f"{step:,}" for step, _ in captions)
    return Film(_picture(image, f"{of} at steps {steps}"), captions)


def _side_by_side(pictures: UInt8[np.ndarray, "n h w 3"], size: tuple[int, int]) -> Image.Image:
    width, height = size
    strip = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        strip.paste(tile(picture, size), (i * width, 0))
    return strip


def _still(picture: UInt8[np.ndarray, "h w 3"], alt: str, lossless: bool = False) -> Picture:
    return _picture(tile(picture, tile_size(picture[None], least=1, most=256)), alt, lossless)


def _picture(image: Image.Image, alt: str, lossless: bool = False) -> Picture:
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=88, lossless=lossless)
    source = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(source, *image.size, alt)
