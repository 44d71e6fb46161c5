"""A contact sheet: pictures in a grid, each group under its caption."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from cnx.report.grid import GAP, INK, MARGIN, PAPER, TEXT, font, wrap


def contact_sheet(pictures: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str], columns: int) -> Image.Image:
    """Draw `pictures` in groups of equal size, one group a caption, `columns` groups in a row."""
    group = len(pictures) // len(captions)
    height, width = pictures.shape[1:3]
    group_width = group * (width + GAP) - GAP
    wrapped = [wrap(caption, font(TEXT), group_width) for caption in captions]
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
            draw.text((left, top + i * (TEXT + 5)), line, INK, font(TEXT))
        for i in range(group):
            picture = Image.fromarray(pictures[number * group + i])
            page.paste(picture, (left + i * (width + GAP), top + caption_height))
    return page
