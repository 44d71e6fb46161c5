"""A picture wall: how one held-out item was drawn, run by run and step by step."""

from collections.abc import Sequence
from itertools import chain
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from cnx.report.grid import (
    GAP,
    GREY,
    HEAD,
    INK,
    MARGIN,
    PAPER,
    SMALL,
    TITLE,
    fitting,
    font,
    map_columns,
    tile,
    tile_size,
    wrap,
)
from cnx.report.saved import SavedRun


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of `values`, evenly chosen by position, the first and the last always among them."""
    chosen = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)
    return [values[i] for i in np.unique(chosen)]


def shared_items(runs: Sequence[SavedRun], by: Literal["control", "target"] = "control") -> list[list[int]]:
    """The places of the held-out items that all runs draw, under the same control map: one list a run, in one order.

    `by` target: of the same picture, whatever kind of map each run makes of it. Empty lists where no item is shared.
    """
    keys = [[picture.tobytes() for picture in getattr(run.heldout, by)] if run.heldout else [] for run in runs]
    shared = [key for key in keys[0] if all(key in others for others in keys[1:])] if keys else []
    return [[own.index(key) for key in shared] for own in keys]


def picture_wall(runs: Sequence[SavedRun], labels: Sequence[str], most_steps: int = 8) -> Image.Image | None:
    """One row a run: control maps | samples at growing optimizer steps | target. None if no run has pictures.

    Every row shows the first item that all runs draw; where there is none, each run's own first, and the title says so.
    The columns are the steps at which most runs drew, or if these are hardly any, those of the run with the most of
    them; a run shows what it drew there, and nothing if it did not.
    """
    pairs = [(run, label) for run, label in zip(runs, labels, strict=True) if run.pictured()]
    if not pairs:
        return None
    drawing = [run for run, _ in pairs]
    shared = shared_items(drawing)
    if not shared[0]:  # another kind of control in each run, perhaps
        shared = shared_items(drawing, by="target")
    items = [places[0] if places else 0 for places in shared]
    drawn = [run.pictured() for run in drawing]
    steps = sorted(step for step in {*chain(*drawn)} if sum(step in own for own in drawn) > len(drawn) / 2)
    if len(steps) < 3:
        steps = max(drawn, key=lambda found: (len(found), found[-1]))
    steps = spread(steps, most_steps)

    first = pairs[0][0].heldout
    assert first is not None
    width, height = tile_size(first.control, least=96, most=128)
    label_width = 190
    # The heads of the run with the most maps; another leaves the rest of them blank.
    map_heads = max(
        ([head for head, _ in map_columns(run.heldout.control)] for run, _ in pairs if run.heldout), key=len
    )
    maps = len(map_heads)
    lefts = [MARGIN + label_width + GAP + i * (width + GAP) for i in range(maps + len(steps) + 1)]
    lefts[maps:] = [left + GAP for left in lefts[maps:]]
    lefts[-1] += GAP
    title = "The same held-out item in every run" if shared[0] else "Each run's first held-out item: they share none"
    if shared[0]:
        title += f": {first.prompts[items[0]]}"
    total = lefts[-1] + width + MARGIN
    title_lines = wrap(title, font(TITLE), total - 2 * MARGIN)
    body = MARGIN + len(title_lines) * (TITLE + 6) + 8 + HEAD + 10
    wrapped = [wrap(label, font(HEAD), label_width) for _, label in pairs]
    row_heights = [max(height, (HEAD + 4) * len(lines) + SMALL) for lines in wrapped]
    page = Image.new("RGB", (total, body + sum(row_heights) + GAP * len(pairs) + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(title_lines):
        draw.text((MARGIN, MARGIN + i * (TITLE + 6)), line, INK, font(TITLE))
    heads = [*map_heads, *[f"step {step:,}" for step in steps], "target"]
    for left, head in zip(lefts, heads, strict=True):
        draw.text((left + width / 2, body - HEAD - 10), head, GREY, font(fitting(head, HEAD, width)), anchor="ma")
    y = body
    for (run, _), lines, item, row_height in zip(pairs, wrapped, items, row_heights, strict=True):
        for i, line in enumerate(lines):
            draw.text((MARGIN, y + i * (HEAD + 4)), line, INK, font(HEAD))
        for left, picture in zip(lefts, _row(run, item, steps, maps), strict=True):
            if picture is not None:
                page.paste(tile(picture, (width, height)), (left, y))
        y += row_height + GAP
    return page


def _row(run: SavedRun, item: int, steps: Sequence[int], maps: int) -> list[UInt8[np.ndarray, "h w 3"] | None]:
    assert run.heldout is not None
    drawn = set(run.pictured())
    samples = [run.samples(step)[item] if step in drawn else None for step in steps]
    own = [pictures[item] for _, pictures in map_columns(run.heldout.control)]
    return [*own, *[None] * (maps - len(own)), *samples, run.heldout.target[item]]
