"""Prompts from photos."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from cnx.errors import InputError


class Captioner:
    """BLIP (arXiv 2201.12086), which the paper's automatic prompts and the attempts' captions come from.

    Runs on the GPU where there is one.

    Args:
        path: a folder in transformers format or a hub id.
        prefix: what every caption begins with; BLIP goes on from it. CuteNet: "a photography of".

    Raises:
        InputError: nothing to load at `path`, here or on the hub.
    """

    def __init__(self, path: str, prefix: str = "") -> None:
        self.prefix = prefix.strip()
        try:
            self.processor: Any = BlipProcessor.from_pretrained(path)
            self.model = cast(Any, BlipForConditionalGeneration.from_pretrained(path)).eval()
        except Exception as error:  # transformers, hub and safetensors each raise their own kinds
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{path}: BLIP cannot be loaded from there; load it once with a network so that it is cached, or give"
                f" a local folder in transformers format ({reason})"
            ) from error
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, photo: UInt8[np.ndarray, "h w 3"]) -> str:
        """What is to be seen in an RGB photo, in a few English words: greedily decoded."""
        return self.describe([photo])[0]

    @torch.inference_mode()
    def describe(self, photos: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[str]:
        """As for one photo, for a batch of any sizes."""
        given = {"text": [self.prefix] * len(photos)} if self.prefix else {}
        images = [Image.fromarray(photo) for photo in photos]
        inputs = self.processor(images=images, return_tensors="pt", **given).to(self.model.device)
        tokens = self.model.generate(**inputs, max_new_tokens=40, num_beams=1, do_sample=False)
        return [words.strip() for words in self.processor.batch_decode(tokens, skip_special_tokens=True)]
