"""A contact sheet: pictures in a grid, each group under its caption."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import UInt8
from matplotlib.font_manager import findfont, fontManager, get_font
from PIL import Image, ImageDraw, ImageFont

from cnx.report.grid import GAP, INK, MARGIN, PAPER, TEXT, font, wrap

FRAME = "#d9d9d9"


def contact_sheet(pictures: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str], columns: int) -> Image.Image:
    """Draw `pictures` in groups of equal size, one group a caption, `columns` groups in a row."""
    group = len(pictures) // len(captions)
    height, width = pictures.shape[1:3]
    group_width = group * (width + GAP) - GAP
    fonts = [font_of(caption, TEXT) for caption in captions]
    wrapped = [wrap(caption, own, group_width) for caption, own in zip(captions, fonts, strict=True)]
    caption_height = max(len(lines) for lines in wrapped) * (TEXT + 5) + 4
    rows = -(-len(captions) // columns)
    page = Image.new(
        "RGB",
        (
            2 * MARGIN + columns * (group_width + MARGIN) - MARGIN,
            2 * MARGIN + rows * (height + caption_height + MARGIN) - MARGIN,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(page)
    for number, lines in enumerate(wrapped):
        left = MARGIN + number % columns * (group_width + MARGIN)
        top = MARGIN + number // columns * (height + caption_height + MARGIN)
        for i, line in enumerate(lines):
            draw.text((left, top + i * (TEXT + 5)), line, INK, fonts[number])
        for i in range(group):
            picture = Image.fromarray(pictures[number * group + i])
            page.paste(picture, (left + i * (width + GAP), top + caption_height))
    return page


def framed(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """An image of any shape in the middle of a square of `side` pixels, grey around it."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(edge * scale)) for edge in image.shape[:2])
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), FRAME)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return np.asarray(square)


def font_of(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The usual font, or one that has all of the text's letters: DejaVu, else any on this machine, else DejaVu."""
    return font(size) if text.isascii() else ImageFont.truetype(_font_file(frozenset(text)), size)


@cache
def _font_file(letters: frozenset[str]) -> str:
    usual = findfont("DejaVu Sans")
    installed = [entry.fname for entry in fontManager.ttflist if "LastResort" not in entry.fname]  # boxes for all
    for file in (usual, *installed):
        known = get_font(file).get_charmap()
        if all(ord(letter) in known for letter in letters):
            return file
    return usual
