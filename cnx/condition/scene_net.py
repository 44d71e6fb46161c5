"""A small network that sees the geometry of drawn scenes: the detector that ships with the repository."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cnx.condition import ade20k
from cnx.condition.geometry import Geometry, Joints
from cnx.errors import InputError

PEAK = 0.3  # the least height of a joint's peak
REACH = 1.5  # a detected peak's position is the mean around it, this many cells to each side


class Seen(NamedTuple):
    """What the network says of pictures; joints as heat maps at half their side."""

    nearness: Float[Tensor, "b h w"]
    normal: Float[Tensor, "b 3 h w"]
    classes: Float[Tensor, "b c h w"]  # logits
    joints: Float[Tensor, "b j h/2 w/2"]


class SceneNet(nn.Module):
    """A U-Net (Ronneberger et al., MICCAI 2015) on 2 x 2 blocks of pixels, for pictures of about `side` pixels.

    Args:
        channels: at 1/2, 1/4, 1/8, ... of the side.
        classes: names in ADE20K's list; what is shown is taken for one of these.
        joints: names; a skeleton has at most one of each.
        side: of the pictures that it was trained on; others are resized to it.
    """

    def __init__(self, channels: list[int], classes: list[str], joints: list[str], side: int = 128) -> None:
        super().__init__()
        self.settings = {"channels": channels, "classes": classes, "joints": joints, "side": side}
        self.class_names, self.joint_names, self.side = classes, joints, side
        self.multiple = 2 ** len(channels)
        self.stem = _block(12, channels[0])
        pairs = list(zip(channels, channels[1:], strict=False))
        self.down = nn.ModuleList(_block(a, b) for a, b in pairs)
        self.up = nn.ModuleList(_block(b + a, a) for a, b in pairs)
        self.dense = nn.Conv2d(channels[0], 4 * (1 + 3 + len(classes)), 1)
        self.heat = nn.Conv2d(channels[0], len(joints), 1)

    def forward(self, pictures: Float[Tensor, "b 3 h w"]) -> Seen:
        """RGB in [0, 1], the sides multiples of `multiple`."""
        x = self.stem(F.pixel_unshuffle(pictures * 2 - 1, 2))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.avg_pool2d(x, 2))
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))
        dense = F.pixel_shuffle(self.dense(x), 2).float()
        normal = dense[:, 1:4] + dense.new_tensor([0, 0, 1])[:, None, None]
        # Not F.normalize, which is many times slower across channels.
        normal = normal / (normal.square().sum(1, keepdim=True) + 1e-6).sqrt()
        return Seen(dense[:, 0].sigmoid(), normal, dense[:, 4:], self.heat(x).float().sigmoid())

    @torch.inference_mode()
    def detect(self, image: UInt8[np.ndarray, "h w 3"]) -> Geometry:
        """What an RGB picture of any size shows."""
        height, width = image.shape[:2]
        scale = self.side / min(height, width)
        tall, wide = (max(1, round(side * scale / self.multiple)) * self.multiple for side in (height, width))
        small = image
        if (tall, wide) != (height, width):
            small = cv2.resize(image, (wide, tall), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        device = self.dense.weight.device
        pictures = torch.from_numpy(small.copy()).permute(2, 0, 1)[None].to(device).float() / 255
        with torch.autocast(device.type, enabled=False):  # training's, under which the probe judges
            seen: Seen = self(pictures)
        found = torch.cat([seen.nearness[:, None], seen.normal, seen.classes], 1)
        found = F.interpolate(found, (height, width), mode="bilinear", align_corners=False)[0].cpu()
        numbers = torch.tensor([ade20k.number(name) for name in self.class_names], dtype=torch.uint8)
        classes = numbers[found[4:].argmax(0)].numpy()
        bodies = (classes == ade20k.number("animal")).astype(np.uint8)
        return Geometry(
            nearness=found[0].numpy(),
            normal=F.normalize(found[1:4], dim=0).permute(1, 2, 0).numpy(),
            classes=classes,
            skeletons=_skeletons(seen.joints[0].cpu().numpy(), self.joint_names, bodies),
        )

    def nearness(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Float[np.ndarray, "h w"]]:
        return [self.detect(image).nearness for image in images]

    def normal(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Float[np.ndarray, "h w 3"]]:
        return [self.detect(image).normal for image in images]

    def classes(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[UInt8[np.ndarray, "h w"]]:
        return [self.detect(image).classes for image in images]

    def skeletons(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[tuple[Joints, ...]]:
        return [self.detect(image).skeletons or () for image in images]

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors, in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.dumps({"architecture": "SceneNet", **self.settings}, indent=2) + "\n"
        (folder / "config.json").write_text(settings, encoding="utf-8")
        weights = {name: tensor.detach().half().contiguous().cpu() for name, tensor in self.state_dict().items()}
        part = folder / "model.safetensors.part"
        save_file(weights, part)
        os.replace(part, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` has written. Raises InputError where that is not whole."""
        try:
            settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            settings.pop("architecture")
            net = cls(**settings)
            net.load_state_dict(
                {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
            )
        except Exception as error:  # safetensors, json and torch each raise their own kinds
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{folder}: no whole detector of drawn scenes ({reason}); make it with"
                " python run.py experiment=detector_tiny"
            ) from error
        return net.eval().requires_grad_(False)


def _block(before: int, after: int) -> nn.Sequential:
    """Two convolutions, each normalised in groups of four channels."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.GroupNorm(after // 4, after),
        nn.SiLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.GroupNorm(after // 4, after),
        nn.SiLU(),
    )


def _skeletons(
    heat: Float[np.ndarray, "j h w"], names: list[str], bodies: UInt8[np.ndarray, "H W"]
) -> tuple[Joints, ...]:
    """The peaks of heat maps, sorted by the body that they lie on or nearest to; of each joint a body's highest."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(bodies, connectivity=8)
    large = [body for body in range(1, count) if stats[body, cv2.CC_STAT_AREA] >= 0.002 * bodies.size]
    if not large:
        return ()
    labels = cv2.connectedComponents(bodies, connectivity=8)[1]
    away = np.stack([cv2.distanceTransform((labels != body).astype(np.uint8), cv2.DIST_L2, 5) for body in large])
    owner = away.argmin(0)
    height, width = bodies.shape
    per_x, per_y = width / heat.shape[2], height / heat.shape[1]
    best: list[dict[str, tuple[float, float, float]]] = [{} for _ in large]
    for name, plane in zip(names, heat, strict=True):
        peaks = (plane >= PEAK) & (plane == cv2.dilate(plane, np.ones((5, 5))))
        for row, column in np.argwhere(peaks).tolist():
            x, y = _centre(plane, row, column)
            x, y = x * per_x, y * per_y
            body = best[owner[min(height - 1, int(y)), min(width - 1, int(x))]]
            if name not in body or body[name][0] < plane[row, column]:
                body[name] = float(plane[row, column]), x, y
    return tuple({name: (x, y) for name, (_, x, y) in body.items()} for body in best if body)


def _centre(plane: Float[np.ndarray, "h w"], row: int, column: int) -> tuple[float, float]:
    """The mean position around a peak, in cells, cell centres at .5."""
    reach = int(np.ceil(REACH))
    top, left = max(0, row - reach), max(0, column - reach)
    window = plane[top : row + reach + 1, left : column + reach + 1]
    rows, columns = np.mgrid[top : top + window.shape[0], left : left + window.shape[1]] + 0.5
    weight = np.maximum(window, 1e-6) ** 2
    return float((columns * weight).sum() / weight.sum()), float((rows * weight).sum() / weight.sum())
