"""A page of drawings under what they were drawn from."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from cnx.report.grid import GAP, GREY, HEAD, INK, MARGIN, PAPER, TEXT, TITLE, fitting, font, tile, tile_size, wrap


def drawings_page(
    givens: Sequence[tuple[str, UInt8[np.ndarray, "n h w 3"]]],
    drawn: Sequence[tuple[str, UInt8[np.ndarray, "n h w 3"]]],
    captions: Sequence[str],
    title: str,
) -> Image.Image:
    """One row an item, under its caption: what was given | what was drawn, each column under its head.

    Images are shown at 128 to 256 px a side, whatever their own.
    """
    columns = [*givens, *drawn]
    width, height = tile_size(columns[0][1], least=128, most=256)
    lefts = [MARGIN + i * (width + GAP) + (2 * GAP if i >= len(givens) else 0) for i in range(len(columns))]
    wide = lefts[-1] + width - MARGIN
    title_lines = wrap(title, font(TITLE), wide)
    wrapped = [wrap(caption, font(TEXT), wide) for caption in captions]
    line = TEXT + 5
    top = MARGIN + len(title_lines) * (TITLE + 6) + 8
    body = top + HEAD + 12
    tall = body + sum(len(lines) * line + 2 + height + 2 * GAP for lines in wrapped) - 2 * GAP + MARGIN
    page = Image.new("RGB", (wide + 2 * MARGIN, tall), PAPER)
    draw = ImageDraw.Draw(page)
    for i, text in enumerate(title_lines):
        draw.text((MARGIN, MARGIN + i * (TITLE + 6)), text, INK, font(TITLE))
    for left, (head, _) in zip(lefts, columns, strict=True):
        draw.text((left + width / 2, top), head, GREY, font(fitting(head, HEAD, width)), anchor="ma")
    y = body
    for i, lines in enumerate(wrapped):
        for text in lines:
            draw.text((MARGIN, y), text, INK, font(TEXT))
            y += line
        y += 2
        for left, (_, images) in zip(lefts, columns, strict=True):
            page.paste(tile(images[i], (width, height)), (left, y))
        y += height + 2 * GAP
    return page
