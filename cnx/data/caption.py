"""Prompts from photos."""

from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from cnx.errors import InputError


class Captioner:
    """BLIP (arXiv 2201.12086), which the paper's automatic prompts and the attempts' captions come from.

    `path` is a folder in transformers format or a hub id. Raises InputError if it is neither to be had here nor there.
    """

    def __init__(self, path: str) -> None:
        try:
            self.processor: Any = BlipProcessor.from_pretrained(path)
            self.model = cast(Any, BlipForConditionalGeneration.from_pretrained(path)).eval()
        except Exception as error:  # transformers, hub and safetensors each raise their own kinds
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"captioner.path={path}: BLIP cannot be loaded from there; load it once with a network so that it is"
                f" cached, or give a local folder in transformers format ({reason})"
            ) from error

    @torch.inference_mode()
    def __call__(self, photo: UInt8[np.ndarray, "h w 3"]) -> str:
        """What is to be seen in an RGB photo, in a few English words: greedily decoded, without a prefix."""
        inputs = self.processor(images=Image.fromarray(photo), return_tensors="pt")
        tokens = self.model.generate(**inputs, max_new_tokens=40, num_beams=1, do_sample=False)
        return self.processor.decode(tokens[0], skip_special_tokens=True).strip()
