"""Look at a data set before hours are spent on it."""

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import rich
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import CLIPTokenizer

from cnx.base import Base
from cnx.base.base import find_folder
from cnx.condition import Condition, Given, Several
from cnx.data.folder import BEHIND_MAP, OR_SKIP, Item, load_image
from cnx.data.module import ControlData
from cnx.data.prepare.prepare import STAMP, cores
from cnx.data.survey import Survey, judge_fit, near_copies, survey
from cnx.errors import InputError
from cnx.report import save_image
from cnx.report.sheet import contact_sheet, framed
from cnx.report.table import Table
from cnx.task.prepare import shortened
from cnx.task.run_folder import given_overrides, note_choices
from cnx.task.train import base_settings, say

SHEET_ITEMS, SHEET_SIDE = 24, 192  # pairs on the contact sheet, half of them with a problem at most; size in px
GOOD, NOTE, WARNING, FAILS = "good", "note", "WARNING", "TRAINING FAILS"
# How many times its contrast a map's brightness is where control begins late (docs/results.md): of normals 8, of black
# lines on white 6, of maps that are learnt at once 4 at most.
LIGHT = 5


@dataclass
class Finding:
    """One line of the table: what was looked at, what came of it, and the pairs that it is about, with the details."""

    subject: str
    verdict: str
    text: str
    pairs: dict[int, str] = field(default_factory=dict)


def run(cfg: DictConfig) -> None:
    """Check the data set of `cfg.data`, print what was found, and write problems.csv and contact_sheet.png.

    Raises InputError, and so ends with exit status 1, where training would fail.
    """
    note_choices(cfg)
    data: ControlData = instantiate(cfg.data)
    condition, known_by = _condition(cfg, Path(data.root))
    if isinstance(condition, Several) or len(data.roots) > 1:
        raise InputError("data.root: task=check looks at one kind of map at a time; check each condition's data set")
    workers = cfg.workers or cores()
    items = data.reader(data.root, data.limit, "skip", data.cache_folder)
    found = survey(items, data.fraction, workers)

    findings = [
        _readable(found, data.on_error),
        _split(found, data),
        _sizes(found, data.resolution),
        Finding("pictures", *_some(found.blank, WARNING, "of one colour all over"), _pairs(found.blank)),
        Finding("maps", *_some(found.empty, WARNING, "empty: one colour all over"), _pairs(found.empty)),
        _background(found),
        _fit(items, found, condition, known_by, cfg.sample, workers),
        *_copies(items, found),
        *_captions(items, _tokenizer(cfg)),
    ]
    out = Path(cfg.out or Path(cfg.runs) / "check" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    _write(out, items, findings)
    sheet = _sheet(items, found, findings, condition)
    if sheet is not None:
        save_image(sheet, out / "contact_sheet.png")
    rows = [[finding.subject, finding.verdict, finding.text] for finding in findings]
    title = f"{data.root}: {len(items):,} pairs"
    rich.get_console().print(Table(title, ["looked at", "verdict", "found"], rows, {"looked at", "verdict", "found"}))
    say(f"Pairs with a problem: {out / 'problems.csv'}; some of them, and others: {out / 'contact_sheet.png'}")
    if failures := [finding for finding in findings if finding.verdict == FAILS]:
        raise InputError(f"{data.root}: training would fail: {'; '.join(finding.text for finding in failures)}")


def _condition(cfg: DictConfig, root: Path) -> tuple[Condition, str]:
    """The maps' condition, and how that is known: told, or written down when the folder was prepared."""
    stamp = root / STAMP
    if not any(override.startswith("condition") for override in given_overrides()) and stamp.is_file():
        prepared = json.loads(stamp.read_text(encoding="utf-8"))["settings"]["condition"]
        return instantiate(OmegaConf.create(prepared)), f"{STAMP} says {prepared['_target_'].rsplit('.', 1)[-1]}"
    return instantiate(cfg.condition), f"condition={cfg.choices.get('condition')}"


def _tokenizer(cfg: DictConfig) -> CLIPTokenizer:
    """The base's tokenizer, alone where it can be had alone."""
    folder = find_folder(cfg.base.path)
    if folder is not None and (folder / "tokenizer").is_dir():
        return CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return Base.load(**base_settings(cfg)).tokenizer


def _pairs(chosen: np.ndarray) -> dict[int, str]:
    return dict.fromkeys(np.flatnonzero(chosen).tolist(), "")


def _some(chosen: np.ndarray, verdict: str, what: str) -> tuple[str, str]:
    count = int(chosen.sum())
    return (verdict, f"{count:,} {what}") if count else (GOOD, f"none {what}")


def _readable(found: Survey, on_error: str) -> Finding:
    if not found.unusable:
        return Finding("files", GOOD, "all there, readable, map and picture of the same size")
    first = next(iter(found.unusable.values()))
    text = f"{len(found.unusable):,} pairs cannot be used: {first}"
    verdict = WARNING if on_error == "skip" else FAILS
    return Finding("files", verdict, text if on_error == "skip" else text + OR_SKIP, dict(found.unusable))


def _split(found: Survey, data: ControlData) -> Finding:
    held, usable = int((found.usable & found.held_out).sum()), int(found.usable.sum())
    text = f"{usable - held:,} pairs to train on, {held:,} held out (data.heldout={data.fraction:g})"
    if usable == held:
        return Finding("split", FAILS, f"{text}: nothing to train on; add pictures or lower data.heldout")
    if data.fraction > 0 and not held:
        return Finding("split", FAILS, f"{text}: nothing to measure control on; raise data.heldout or add pictures")
    return Finding("split", GOOD, text)


def _sizes(found: Survey, resolution: int) -> Finding:
    sizes = found.size[found.usable]
    if not len(sizes):
        return Finding("sizes", NOTE, "no picture could be read")
    common = Counter(f"{width}x{height}" for height, width in sizes.tolist()).most_common(3)
    shown = ", ".join(f"{size} ({count / len(sizes):.0%})" for size, count in common)
    different = len(np.unique(sizes, axis=0))
    text = shown if different <= 3 else f"{different:,} different: {shown}, ..."
    short, long = found.size.min(axis=1), found.size.max(axis=1)
    small = found.usable & (short < resolution)
    lost = found.usable & (long > 1.5 * short)
    if small.any():
        text += f"; {small.sum():,} smaller than data.resolution={resolution}: they are enlarged, and blurred"
    if lost.any():
        text += f"; {lost.sum():,} lose more than a third when they are cropped to a square"
    pairs = {at: f"{found.size[at, 1]}x{found.size[at, 0]}" for at in np.flatnonzero(small | lost).tolist()}
    return Finding("sizes", NOTE if small.any() or lost.any() else GOOD, text, pairs)


def _background(found: Survey) -> Finding:
    subject, use = "background of maps", found.usable & ~found.empty
    if not use.any():
        return Finding(subject, NOTE, "nothing to look at")
    brightness, contrast = np.median(found.brightness[use]), np.median(found.contrast[use])
    text = f"brightness {brightness:.0f}, contrast {contrast:.0f} of 255 (medians)"
    if brightness > LIGHT * contrast:
        return Finding(subject, NOTE, f"{text}: control begins later under maps that are light where they say nothing")
    return Finding(subject, GOOD, text)


def _fit(
    items: Sequence[Item], found: Survey, condition: Condition, known_by: str, most: int | None, workers: int
) -> Finding:
    subject = "fit of maps"
    if isinstance(condition, Given):
        return Finding(subject, NOTE, "not looked at (condition=none)")
    fit = judge_fit(items, found, condition, most, workers)
    if not fit.chosen:
        return Finding(subject, NOTE, "nothing to compare")
    own, other = np.median(fit.own), np.median(fit.other)
    scores = f"fidelity {own:.2f} to their own pictures, {other:.2f} to others' (medians, {known_by})"
    if not fit.whole:
        return Finding(subject, WARNING, f"{scores}: another condition's maps, or of other pictures?")
    misfits = {at: "the map fits its picture hardly better than another picture" for at in fit.misfits}
    if misfits:
        text = f"{len(misfits):,} of {len(fit.chosen):,} compared hardly fit their pictures; {scores}"
        return Finding(subject, WARNING, text, misfits)
    return Finding(subject, GOOD, f"{len(fit.chosen):,} compared; {scores}")


def _copies(items: Sequence[Item], found: Survey) -> list[Finding]:
    usable = np.flatnonzero(found.usable)
    _, first, counts = np.unique(found.target[usable], return_index=True, return_counts=True)
    again = int((counts - 1).sum())
    extra = np.setdiff1d(usable, usable[first]).tolist()
    same = Finding(
        "copies", NOTE if again else GOOD, f"{again:,} pictures are there more than once" if again else "none"
    )
    same.pairs = dict.fromkeys(extra, "its picture is there more than once")
    copies = near_copies(found, items)
    across = Finding("copies across the split", GOOD, "no held-out picture is trained on too")
    if copies:
        across.verdict = WARNING
        across.text = f"{len({held for held, _ in copies}):,} held-out pictures are trained on too, in another file"
        across.pairs = {held: f"the same picture as {items[trained].target}" for held, trained in copies}
    return [same, across]


def _captions(items: Sequence[Item], tokenizer: CLIPTokenizer) -> list[Finding]:
    limit = tokenizer.model_max_length
    prompts = list(dict.fromkeys(item.prompt for item in items))
    lengths: dict[str, int] = {}
    for start in range(0, len(prompts), 1024):
        batch = prompts[start : start + 1024]
        lengths |= {p: len(ids) for p, ids in zip(batch, tokenizer(batch)["input_ids"], strict=True)}
    long = {at: f"{n} tokens" for at, item in enumerate(items) if (n := lengths[item.prompt]) > limit}
    empty = np.array([not item.prompt.strip() for item in items])
    most = max(lengths.values())
    text = f"the longest has {most} tokens of {limit}, start and end included"
    if long:
        text = f"{len(long):,} are longer than the base's {limit} tokens and lose their end; {text}"
    return [
        Finding("captions", WARNING if long else GOOD, f"{len(prompts):,} different; {text}", long),
        Finding("empty captions", *_some(empty, NOTE, "of them"), _pairs(empty)),
    ]


def _write(out: Path, items: Sequence[Item], findings: Sequence[Finding]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    part = out / "problems.csv.part"
    with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["source", "target", "problem", "detail"])
        for finding in findings:
            for at, detail in finding.pairs.items():
                writer.writerow([items[at].source, items[at].target, f"{finding.subject}: {finding.verdict}", detail])
    os.replace(part, out / "problems.csv")


def _sheet(items: Sequence[Item], found: Survey, findings: Sequence[Finding], condition: Condition) -> Any:
    """Pairs with a problem, then pairs from all over the data set; None where none can be read."""
    usable = np.flatnonzero(found.usable)
    if not len(usable):
        return None
    problems: dict[int, str] = {}
    serious = [finding for finding in findings if finding.verdict == WARNING]
    for finding in serious:
        readable = [at for at in finding.pairs if at not in found.unusable]
        for at in readable[: SHEET_ITEMS // 2 // len(serious)]:
            problems.setdefault(at, finding.subject)
    spread = usable[np.linspace(0, len(usable) - 1, SHEET_ITEMS - len(problems)).round().astype(int)].tolist()
    pictures, captions = [], []
    for at in dict.fromkeys([*problems, *spread]):
        control_map, picture = load_image(items[at].source, BEHIND_MAP), load_image(items[at].target)
        pictures += [framed(picture, SHEET_SIDE), framed(condition.display(control_map), SHEET_SIDE)]
        captions.append((f"[{problems[at]}] " if at in problems else "") + shortened(items[at].prompt))
    return contact_sheet(np.stack(pictures), captions, columns=4)
