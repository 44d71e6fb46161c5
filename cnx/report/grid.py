"""Grids of samples: the same held-out items, prompts and noise in every row."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from cnx.errors import InputError

MARGIN = 24
GAP = 6
INK, GREY, PAPER = "#1a1a1a", "#6b6b6b", "white"
TITLE, HEAD, TEXT, SMALL = 20, 14, 14, 12  # font sizes, px


def sample_grid(
    control: UInt8[np.ndarray, "n h w m"],
    target: UInt8[np.ndarray, "n h w 3"],
    reconstruction: UInt8[np.ndarray, "n h w 3"],
    samples: UInt8[np.ndarray, "n h w 3"],
    captions: Sequence[str],
    title: str,
) -> Image.Image:
    """One row per item: control map, or each of several | target | VAE reconstruction | sample | caption.

    Images are shown at 128 to 256 px a side, whatever their own. A caption too long for its row makes the row higher.
    """
    given = map_columns(control)
    columns = [*(maps for _, maps in given), target, reconstruction, samples]
    heads = [*(head for head, _ in given), "target", "VAE reconstruction", "sample", "caption"]
    count = len(columns)
    width, height = tile_size(control, least=128, most=256)
    caption_width = 220
    lines = [wrap(caption, font(TEXT), caption_width) for caption in captions]
    line_height = TEXT + 5
    row_heights = [max(height, len(wrapped) * line_height) for wrapped in lines]

    title_lines = wrap(title, font(TITLE), count * (width + GAP) + 2 * GAP + caption_width)
    top = MARGIN + len(title_lines) * (TITLE + 6) + 8
    body = top + HEAD + 10
    page = Image.new(
        "RGB",
        (
            2 * MARGIN + count * (width + GAP) + 2 * GAP + caption_width,
            body + sum(row_heights) + GAP * len(lines) + MARGIN,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(title_lines):
        draw.text((MARGIN, MARGIN + i * (TITLE + 6)), line, INK, font(TITLE))
    lefts = [MARGIN + i * (width + GAP) for i in range(count + 1)]
    lefts[count] += 2 * GAP
    for i, (left, head) in enumerate(zip(lefts, heads, strict=True)):
        if i < count:
            draw.text((left + width / 2, top), head, GREY, font(fitting(head, HEAD, width)), anchor="ma")
        else:
            draw.text((left, top), head, GREY, font(HEAD))
    y = body
    for i, wrapped in enumerate(lines):
        for left, column in zip(lefts, columns, strict=False):
            page.paste(tile(column[i], (width, height)), (left, y))
        for k, line in enumerate(wrapped):
            draw.text((lefts[count], y + k * line_height), line, INK, font(TEXT))
        y += row_heights[i] + GAP
    return page


def grid_over_time(run_folder: str | Path, rows: int = 6, most_steps: int = 10) -> Path:
    """Draw `samples_over_time.png` of a run folder from its saved probes, and return its path.

    Columns: control maps, the probes' steps (at most `most_steps`, evenly chosen, the first and the last always among
    them) with the calibrated control fidelity under each, target. Rows: the first `rows` items, under their prompts.
    It reads `samples/probe.json`, `samples/heldout.npz` and `samples/step_*.npz`.

    Raises:
        InputError: the folder holds no saved probes.
    """
    folder = Path(run_folder)
    samples = folder / "samples"
    if not (samples / "probe.json").is_file() or not (samples / "heldout.npz").is_file():
        raise InputError(
            f"{folder}: no samples/probe.json and samples/heldout.npz, so no probe of a run was saved here"
        )
    probes = json.loads((samples / "probe.json").read_text(encoding="utf-8"))["probes"]
    files = {probe["step"]: samples / f"step_{probe['step']:06d}.npz" for probe in probes}
    probes = [probe for probe in probes if files[probe["step"]].is_file()]
    if not probes:
        raise InputError(f"{samples}: no step_*.npz of the probes in probe.json")
    chosen = np.unique(np.linspace(0, len(probes) - 1, min(most_steps, len(probes))).round().astype(int))
    probes = [probes[i] for i in chosen]

    with np.load(samples / "heldout.npz") as heldout:
        control, target = heldout["control"][:rows], heldout["target"][:rows]
        prompts = [str(prompt) for prompt in heldout["prompts"][:rows]]
    given = map_columns(control)
    columns = [maps for _, maps in given]
    heads = [(head, "") for head, _ in given]
    for probe in probes:
        with np.load(files[probe["step"]]) as saved:
            columns.append(saved["samples"][:rows])
        heads.append((f"step {probe['step']:,}", f"{probe['calibrated']:z.2f}"))
    columns.append(target)
    heads.append(("target", ""))

    absolute = folder.resolve()
    page = _time_page(columns, heads, prompts, f"{absolute.parent.name} / {absolute.name}", len(given))
    path = folder / "samples_over_time.png"
    save_image(page, path)
    return path


def map_columns(control: UInt8[np.ndarray, "n h w m"]) -> list[tuple[str, UInt8[np.ndarray, "n h w 3"]]]:
    """Control maps under their head: one, or one for each condition, in the order of the channels."""
    maps = np.split(control, control.shape[-1] // 3, axis=-1)
    return [("control map" + f" {number}" * (len(maps) > 1), each) for number, each in enumerate(maps, start=1)]


def _time_page(
    columns: list[UInt8[np.ndarray, "n h w 3"]], heads: list[tuple[str, str]], prompts: list[str], title: str, maps: int
) -> Image.Image:
    width, height = tile_size(columns[0], least=96, most=128)
    wide = len(columns) * (width + GAP) + 2 * GAP  # the control maps and the target stand a little apart
    lefts = [
        MARGIN + i * (width + GAP) + GAP * (i >= maps) + GAP * (i == len(columns) - 1) for i in range(len(columns))
    ]
    wrapped = [wrap(prompt, font(SMALL), wide) for prompt in prompts]
    title_lines = wrap(title, font(TITLE), wide)

    note = "Under each step: calibrated control fidelity. 0: the control is ignored; 1: as good as the VAE can draw."
    note_lines = wrap(note, font(SMALL), wide)
    line = SMALL + 4
    top = MARGIN + len(title_lines) * (TITLE + 6) + len(note_lines) * line + 14
    body = top + 2 * (HEAD + 5) + 4
    tall = body + sum(len(lines) * line + 4 + height + 2 * GAP for lines in wrapped) - 2 * GAP + MARGIN
    page = Image.new("RGB", (wide - GAP + 2 * MARGIN, tall), PAPER)
    draw = ImageDraw.Draw(page)
    y = MARGIN
    for text in title_lines:
        draw.text((MARGIN, y), text, INK, font(TITLE))
        y += TITLE + 6
    for text in note_lines:
        draw.text((MARGIN, y), text, GREY, font(SMALL))
        y += line
    for left, (head, under) in zip(lefts, heads, strict=True):
        draw.text((left + width / 2, top), head, GREY, font(fitting(head, HEAD, width)), anchor="ma")
        draw.text((left + width / 2, top + HEAD + 5), under, INK, font(HEAD), anchor="ma")
    y = body
    for i, lines in enumerate(wrapped):
        for text in lines:
            draw.text((MARGIN, y), text, GREY, font(SMALL))
            y += line
        y += 4
        for left, column in zip(lefts, columns, strict=True):
            page.paste(tile(column[i], (width, height)), (left, y))
        y += height + 2 * GAP
    return page


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG so that `path` holds the whole of it or what was there before."""
    part = path.with_name(path.name + ".part")
    image.save(part, format="PNG")
    os.replace(part, path)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def fitting(text: str, size: int, width: int) -> int:
    """The largest font size up to `size`, at least 8, at which the text is no wider than `width`."""
    while size > 8 and font(size).getlength(text) > width:
        size -= 1
    return size


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines no wider than `width` px; a word that is wider by itself is broken."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def tile_size(images: UInt8[np.ndarray, "n h w 3"], least: int, most: int) -> tuple[int, int]:
    height, width = images.shape[1:3]
    scale = min(max(1.0, least / max(height, width)), most / max(height, width))
    return round(width * scale), round(height * scale)


def tile(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(image)
    if picture.size == size:
        return picture
    # Shrunk smoothly; enlarged as the pixels are, so that a small image is not flattered.
    return picture.resize(size, Image.Resampling.LANCZOS if picture.width > size[0] else Image.Resampling.NEAREST)
