"""Learned detectors that others have trained, from controlnet_aux."""

import re
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2

from cnx.condition.condition import Pixels
from cnx.errors import InputError

RESOLUTION = 512  # px of the shorter side at which the released detectors look at a picture


class Annotator:
    """A detector of controlnet_aux with its weights, on the GPU if there is one: a photo to a map of its size.

    Args:
        detector: its class in controlnet_aux.
        path: a folder that holds the weights, or a hub id like `owner/name`.
        files: the files of weights.
        options: what each call of the detector is given.

    Raises:
        InputError: the extra is not installed, or the weights are neither here nor to be had, or are none.
    """

    def __init__(self, detector: str, path: str, files: Sequence[str], **options: Any) -> None:
        self.detector, self.options = _load(detector, path, files), options

    def __call__(self, image: Pixels) -> Pixels:
        seen = self.detector(
            image, detect_resolution=RESOLUTION, image_resolution=RESOLUTION, output_type="np", **self.options
        )
        height, width = image.shape[:2]
        shrinks = seen.shape[0] >= height
        return cv2.resize(seen, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _load(detector: str, path: str, files: Sequence[str]) -> Any:
    folder, names = Path(path).expanduser(), " and ".join(files)
    remedy = f"download {names} of the hub's lllyasviel/Annotators into a folder and give that as condition.path"
    if folder.is_dir():
        if missing := [name for name in files if not (folder / name).is_file()]:
            raise InputError(f"condition.path={path}: no {' and no '.join(missing)} in that folder; {remedy}")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or path.startswith("."):
        raise InputError(f"condition.path={path}: no such folder, and no hub id of the form owner/name; {remedy}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of its parts that are not used here
            library = import_module("controlnet_aux")
    except ImportError as error:
        raise InputError(
            f"condition.path={path}: learned detectors need controlnet_aux ({error}); pip install -e '.[annotators]', "
            "or leave condition.path at null for the detector without weights"
        ) from error
    try:
        loaded = getattr(library, detector).from_pretrained(str(folder) if folder.is_dir() else path)
    except Exception as error:  # torch, the hub and its client each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        if folder.is_dir():
            raise InputError(
                f"condition.path={path}: {names} there cannot be loaded as weights of {detector} ({reason}); {remedy}"
            ) from error
        raise InputError(
            f"condition.path={path}: no folder here, and not to be had from the hub; {remedy} ({reason})"
        ) from error
    import torch  # takes seconds, which those who need no learned detector do not spend

    return loaded.to("cuda" if torch.cuda.is_available() else "cpu")
