"""Make a data set of a folder of photos."""

import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cnx.condition import Condition, Depth, Given, Normal, Pose, Segmentation, Several
from cnx.condition.detector import SCENES
from cnx.data.folder import BEHIND_MAP, load_image, read_folder
from cnx.data.prepare.caption import Captions
from cnx.data.prepare.prepare import Item, Prepared, prepare
from cnx.data.prepare.resize import Resize
from cnx.data.shards import write_shards
from cnx.errors import InputError
from cnx.report import save_image
from cnx.report.sheet import contact_sheet, framed
from cnx.task.run_folder import given_overrides, note_choices
from cnx.task.train import say

SHEET_ITEMS, SHEET_SIDE = 24, 192  # pairs on the contact sheet, and their size in px


def run(cfg: DictConfig) -> None:
    """Make `cfg.out` a data set of the photos in `cfg.source`, or finish it; with a contact sheet to look at.

    Raises InputError as `prepare` does, and without an annotator.
    """
    began = time.perf_counter()
    note_choices(cfg)
    condition: Condition = instantiate(cfg.condition)
    if isinstance(condition, Given):
        raise InputError("condition=none: task=prepare makes maps of photos; choose what of, as condition=canny")
    if isinstance(condition, Several):
        raise InputError(
            f"condition={cfg.choices.get('condition')}: task=prepare makes one kind of map at a time; prepare one"
            " folder for each, and train on data.root=[<folder>,<folder>]"
        )
    named = any(override.startswith("condition.path=") for override in given_overrides())
    if isinstance(condition, Depth | Normal | Segmentation | Pose) and condition.path == SCENES and not named:
        model = condition.for_photos
        raise InputError(
            f"condition={cfg.choices.get('condition')}: the detector that ships knows drawn scenes and no photos;"
            f" hf download {model} --local-dir models/{model.split('/')[-1]}, and give condition.path=<that folder>"
            f" (condition.path={SCENES} if these are drawings)"
        )
    resize: Resize = instantiate(cfg.resize)
    captions: Captions = instantiate(cfg.caption)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    out = Path(str(cfg.out))
    if cfg.shards is not None:
        write_shards([], Path(str(cfg.shards)))  # that it can be done is found out before the work
    found = prepare(
        Path(str(cfg.source)),
        out,
        resize,
        condition,
        captions,
        settings={key: plain[key] for key in ("condition", "resize", "min_side", "target_format")},
        caption_settings=plain["caption"],
        min_side=cfg.min_side,
        target_format=cfg.target_format,
        workers=cfg.workers,
    )
    save_image(_sheet(found.items, out, condition, cfg), out / "contact_sheet.png")
    if cfg.shards is not None:
        write_shards(read_folder(out), Path(str(cfg.shards)))
    for line in summary(found, cfg, time.perf_counter() - began):
        say(line)


def summary(found: Prepared, cfg: DictConfig, seconds: float) -> list[str]:
    """What was made of the photos, in a few lines for the terminal."""
    pairs, captionless = len(found.items), sum(not item.prompt for item in found.items)
    made_of = ", ".join(f"{group}={cfg.choices.get(group)}" for group in ("condition", "resize", "caption"))
    there = f"{pairs:,} pairs were there" if not found.made else f"{found.made:,} pairs made in {seconds:.0f} s"
    lines = [
        f"Prepared {cfg.out}: {pairs:,} pairs of {pairs + len(found.dropped):,} photos in {cfg.source} ({made_of})",
        f"  {there}" + (f"; other files in that folder, passed over: {found.ignored:,}" if found.ignored else ""),
    ]
    if found.dropped:
        kinds = [why.kind for why in found.dropped.values()]
        counts = ", ".join(f"{kinds.count(kind):,} {kind}" for kind in dict.fromkeys(sorted(kinds)))
        lines.append(f"  dropped {len(kinds):,} ({counts}): {Path(str(cfg.out)) / 'dropped.csv'}")
    if found.recaptioned:
        lines.append("  captions are other ones now than before; the pairs are the same")
    if captionless:
        many = "no photo has a caption" if captionless == pairs else f"{captionless:,} photos have no caption"
        lines.append(f"  {many}: the prompt is empty" + ("; caption=blip would write them" * (captionless == pairs)))
    if found.stray:
        lines.append(f"  {found.stray:,} older pairs, whose photos are gone or changed, are kept but not listed")
    if cfg.shards is not None:
        lines.append(f"  the same as shards: {cfg.shards}")
    root = shlex.quote(str(cfg.out))
    sheet = Path(str(cfg.out)) / "contact_sheet.png"
    return [*lines, f"Look at {sheet}, then: python run.py task=check data.root={root}"]


def _sheet(items: list[Item], out: Path, condition: Condition, cfg: DictConfig) -> Any:
    """Pairs from all over the data set, evenly chosen."""
    chosen = [items[i] for i in np.unique(np.linspace(0, len(items) - 1, SHEET_ITEMS).round().astype(int))]
    pictures = []
    for item in chosen:
        control_map = load_image(out / "source" / f"{item.name}.png", BEHIND_MAP)
        photo = load_image(out / "target" / f"{item.name}.{cfg.target_format}")
        pictures += [framed(photo, SHEET_SIDE), framed(condition.display(control_map), SHEET_SIDE)]
    return contact_sheet(np.stack(pictures), [shortened(item.prompt) for item in chosen], columns=4)


def shortened(prompt: str) -> str:
    """A prompt as a contact sheet has room for."""
    return (prompt if len(prompt) <= 120 else f"{prompt[:119]}…") or "(no caption)"
