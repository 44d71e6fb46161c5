"""What task=sample is given: control maps, prompts, a picture to begin from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from jaxtyping import Bool
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from cnx.base import Base
from cnx.data.folder import BEHIND_MAP, fit, load_image, read_folder
from cnx.data.module import to_tensor
from cnx.errors import InputError, check_whole
from cnx.sampler import Picture

PROMPT_MODES = ("none", "default", "automatic", "user")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Subject:
    """What one or more pictures are drawn of: a file for each control map, and their photo and caption if known."""

    files: tuple[Path, ...]
    photo: Path | None
    caption: str | None


def as_list(value: Any) -> list[Any]:
    """The items of a list in the configuration, or its one value."""
    return list(value) if isinstance(value, ListConfig | list) else [value]


def text(cfg: DictConfig, key: str) -> str:
    """`cfg[key]` as a prompt; null is none. Raises InputError for a list."""
    value = cfg[key]
    if value is not None and not isinstance(value, str | int | float):
        raise InputError(f"{key}={value}: must be one text; in quotes where it holds brackets or commas")
    return "" if value is None else str(value)


def for_each(cfg: DictConfig, key: str, nets: int) -> list[float]:
    """A number for each ControlNet: `cfg[key]` is one for all, or a list of as many. Raises InputError."""
    numbers = as_list(cfg[key])
    known = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    if not known or len(numbers) not in (1, nets):
        raise InputError(f"{key}={cfg[key]}: must be one number, or one for each run, of which there are {nets}")
    return [float(number) for number in numbers] * (nets if len(numbers) == 1 else 1)


def read_subjects(cfg: DictConfig, maps: int, annotated: bool) -> list[Subject]:
    """The maps, or the photos to annotate, of `cfg.control`: a file or folder for each of so many control maps.

    Photos of one file or folder are annotated for all maps.
    A folder with prompt.json is read as a data set: its maps, or where they are annotated its photos, with captions.
    Raises InputError for what is not there, holds no pictures, or is another number than `maps`.
    """
    places = [Path(str(place)) for place in as_list(cfg.control)]
    if annotated and len(places) == 1:
        places *= maps
    if len(places) != maps:
        raise InputError(
            f"control={cfg.control}: must be one file or folder for each control map that run={cfg.run} takes, of"
            f" which there are {maps}"
        )
    columns = [_read_place(place, annotated, cfg.limit) for place in places]
    for place, column in zip(places, columns, strict=True):
        if len(column) != len(columns[0]):
            counted = f"{len(columns[0])} pictures in {places[0]}, {len(column)} in {place}"
            raise InputError(f"control: {counted}; give as many for each")
    return [
        Subject(tuple(subject.files[0] for subject in row), row[0].photo, row[0].caption)
        for row in zip(*columns, strict=True)
    ]


def _read_place(place: Path, annotated: bool, limit: int | None) -> list[Subject]:
    if (place / "prompt.json").is_file():
        items = read_folder(place, limit)
        return [Subject((i.target if annotated else i.source,), i.target, i.prompt or None) for i in items]
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix.lower() in PICTURES)[:limit]
        if not files:
            raise InputError(f"control={place}: no pictures in that folder ({', '.join(PICTURES)})")
    elif place.is_file():
        files = [place]
    else:
        raise InputError(f"control={place}: no such file or folder")
    return [Subject((file,), file if annotated else None, None) for file in files]


def read_prompts(cfg: DictConfig, subjects: Sequence[Subject]) -> list[str]:
    """A prompt for each subject as `cfg.prompt_mode` says, with `cfg.added_prompt` behind it.

    none, default, automatic and user are the paper's four (section 4.1); automatic takes a data set's own caption where
    there is one. Raises InputError for another mode, for a prompt that the mode does not use or lacks, and where
    there is no photo to caption or no captioner to be had.
    """
    mode = cfg.prompt_mode or ("default" if cfg.prompt is None else "user")
    if mode not in PROMPT_MODES:
        raise InputError(f"prompt_mode={mode}: must be one of {', '.join(PROMPT_MODES)}")
    if mode != "user" and cfg.prompt is not None:
        raise InputError(f"prompt_mode={mode}: does not draw prompt={cfg.prompt}; leave one of them out")
    if mode == "user" and cfg.prompt is None:
        raise InputError('prompt_mode=user: give the prompt, prompt="..."')
    if mode == "automatic":
        prompts = _captions(cfg, subjects)
    else:
        prompts = ["" if mode == "none" else text(cfg, {"default": "default_prompt", "user": "prompt"}[mode])]
        prompts *= len(subjects)
    return [", ".join(part for part in (prompt, text(cfg, "added_prompt")) if part) for prompt in prompts]


def _captions(cfg: DictConfig, subjects: Sequence[Subject]) -> list[str]:
    photos = [None if subject.caption else cfg.image or subject.photo for subject in subjects]
    for subject, photo in zip(subjects, photos, strict=True):
        if not subject.caption and photo is None:
            raise InputError(
                f"prompt_mode=automatic: no photo of {subject.files[0]} to caption; give image=<photo>, or photos and"
                " condition=canny, or a folder with prompt.json"
            )
    captioner = instantiate(cfg.captioner) if any(photos) else None
    return [
        subject.caption or captioner(load_image(photo))  # pyright: ignore[reportOptionalCall, reportArgumentType]
        for subject, photo in zip(subjects, photos, strict=True)
    ]


def read_size(cfg: DictConfig, base: Base, resolution: int) -> tuple[int, int]:
    """Height and width of the pictures, in pixels; `resolution` where `cfg` does not say.

    Raises InputError for a side that the base's VAE and UNet cannot halve as often as they do.
    """
    multiple = 2 ** (len(base.vae.config["block_out_channels"]) - 1 + base.unet.num_upsamplers)
    for key in ("height", "width"):
        side = cfg[key]
        if side is not None:
            check_whole(key, side)
        if side is not None and (side < multiple or side % multiple):
            below = max(multiple, side // multiple * multiple)
            nearest = f"{below}" if side < multiple else f"{below} or {below + multiple}"
            raise InputError(f"{key}={side}: this base draws multiples of {multiple} px; use {nearest}")
    return cfg.height or resolution, cfg.width or resolution


def read_picture(cfg: DictConfig, base: Base, height: int, width: int) -> Picture | None:
    """The picture to begin from, `cfg.image` with `cfg.mask`, for one drawing; None where none is given.

    A latent is drawn anew if any of its pixels is in the mask, so that all of the mask is. Raises InputError for a mask
    without a picture or of another size, and for a strength outside (0, 1].
    """
    if cfg.image is None:
        for key in ("mask", "image_strength"):
            if cfg[key] is not None:
                raise InputError(f"{key}={cfg[key]}: there is no picture that it is for; give image=<photo>")
        return None
    strength = cfg.image_strength if cfg.image_strength is not None else 0.6 if cfg.mask is None else 1.0
    if type(strength) not in (int, float) or not 0 < strength <= 1:
        raise InputError(f"image_strength={strength}: must be a share of the sampling steps, above 0 and at most 1")
    photo = load_image(cfg.image)
    mask = None
    if cfg.mask is not None:
        painted = load_image(cfg.mask, BEHIND_MAP)
        if painted.shape != photo.shape:
            (mask_height, mask_width), (tall, wide) = painted.shape[:2], photo.shape[:2]
            raise InputError(
                f"mask={cfg.mask}: is {mask_width}x{mask_height}, image={cfg.image} is {wide}x{tall} (width x height);"
                " make them the same size"
            )
        mask = _in_latents(to_tensor(fit(painted, height, width))[None])
        if not mask.any():
            raise InputError(f"mask={cfg.mask}: holds no white, so there is nothing to draw anew")
        mask = mask.to(base.device)
    latents = base.encode_images(to_tensor(fit(photo, height, width))[None])
    return Picture(latents, float(strength), mask)


def _in_latents(mask: Tensor) -> Bool[Tensor, "1 1 h w"]:
    return F.max_pool2d((mask.amax(dim=1, keepdim=True) >= 0.5).float(), 8) > 0


def repeated(picture: Picture | None, pictures: int) -> Picture | None:
    """The same picture to begin from for so many drawings."""
    if picture is None:
        return None
    mask = None if picture.mask is None else picture.mask.expand(pictures, -1, -1, -1)
    return Picture(torch.cat([picture.latents] * pictures), picture.strength, mask)
