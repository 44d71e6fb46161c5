"""A base small enough to build in a second, and folders of small images."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

WriteFolder = Callable[..., Path]


class TinyBase:
    """What cnx.data needs of a base: a real VAE of diffusers and an embedding that tells prompts apart.

    It counts what it encodes. `before_encode` is called before each batch of images, `scale` multiplies all results.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, seed: int = 0, before_encode: Callable[[], object] | None = None, scale: float = 1.0) -> None:
        self.vae = make_vae(seed)
        self.unet = SimpleNamespace(config={"block_out_channels": (8, 8)})
        self.seed, self.before_encode, self.scale = seed, before_encode, scale
        self.images = 0
        self.prompts: list[str] = []

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        if self.before_encode is not None:
            self.before_encode()
        self.images += len(images)
        return self.vae.encode(images * 2 - 1, return_dict=False)[0].mean * self.scale

    def encode_text(self, prompts: list[str]) -> torch.Tensor:
        self.prompts += prompts
        codes = [[(sum(prompt.encode()) * (n + 1) + len(prompt)) % 97 / 97 for n in range(6)] for prompt in prompts]
        return torch.tensor(codes).reshape(-1, 2, 3) * self.scale

    def fingerprint(self, *parts: str) -> str:
        return f"{self.seed} {parts}"


@cache
def make_vae(seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {  # diffusers annotates the tuples as of length one
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8,) * 4,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    return AutoencoderKL(**settings).eval()


@pytest.fixture
def make_base() -> type[TinyBase]:
    return TinyBase


@pytest.fixture
def base() -> TinyBase:
    return TinyBase()


def draw(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Gives a function that writes items of random pixels; item i is the same whatever the count."""

    def write(count: int, name: str = "photos", side: int = 32, seeds: list[int] | None = None) -> Path:
        root = tmp_path / name
        lines = []
        for kind in ("source", "target"):
            (root / kind).mkdir(parents=True)
        for i, seed in enumerate(seeds or range(count)):
            Image.fromarray(draw(2 * seed, side)).save(root / "source" / f"{i}.png")
            Image.fromarray(draw(2 * seed + 1, side)).save(root / "target" / f"{i}.png")
            lines.append({"source": f"source/{i}.png", "target": f"target/{i}.png", "prompt": f"number {seed % 7}"})
        (root / "prompt.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return root

    return write
