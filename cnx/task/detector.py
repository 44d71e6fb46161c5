"""Train the detector of drawn scenes: a small network that sees depth, normals, classes and joints in them.

The truth is known, since the scenes are drawn. What it is to judge are samples of a small Stable Diffusion, so half of
the time it sees a picture as that one's VAE draws it, from latents with some noise; and now and then something that is
no picture, in which it is to see nothing.
"""

import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from jaxtyping import Bool, Float, UInt8
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from cnx.base import Base
from cnx.callback.progress import RunProgress
from cnx.condition import Depth, GeometricCondition, Geometry, Normal, Pose, Segmentation
from cnx.condition.ade20k import NAMES, UNKNOWN
from cnx.condition.scene_net import SceneNet
from cnx.data.folder import load_image, read_folder
from cnx.data.split import digest_all, is_held_out
from cnx.data.synthetic import Scenes, generate
from cnx.errors import InputError
from cnx.report.card import write_card
from cnx.report.sheet import contact_sheet
from cnx.task.pretrain import LastLoss, one_cycle
from cnx.task.run_folder import git_commit, given_overrides, new_run_folder

BODIES = 3  # skeletons in a scene, at most
NOISE = 0.5  # the most noise on latents, in standard deviations of a latent
SPREAD = 1.2  # of a joint's peak in a heat map, in its cells
THINGS = ("animal", "ball")  # classes that stand before a background, and are a small part of most pictures
CONDITIONS: tuple[GeometricCondition, ...] = (Depth(), Normal(), Segmentation(), Pose())


class Truths(NamedTuple):
    """Pictures with what they show, in bytes: nearness * 255, (normal + 1) * 127.5, the network's own classes."""

    pictures: UInt8[Tensor, "n 3 h w"]
    nearness: UInt8[Tensor, "n h w"]
    normal: UInt8[Tensor, "n 3 h w"]
    classes: UInt8[Tensor, "n h w"]
    joints: Float[Tensor, "n bodies j 2"]  # x and y in pixels; NaN where there is none

    def rows(self, at: Tensor) -> "Truths":
        return Truths(*(part[at] for part in self))


class Views(IterableDataset[tuple[Tensor, Truths]]):
    """An endless, seeded stream of (pictures in [0, 1], truths): plain or drawn by the VAE, mirrored or not."""

    def __init__(self, truths: Truths, redrawn: Tensor, joint_names: list[str], batch_size: int, seed: int) -> None:
        self.truths, self.redrawn, self.batch_size, self.seed = truths, redrawn, batch_size, seed
        swapped = [_other_side(name) for name in joint_names]
        self.swap = torch.tensor([joint_names.index(name) for name in swapped], dtype=torch.long)

    def __iter__(self) -> Iterator[tuple[Tensor, Truths]]:
        generator = torch.Generator().manual_seed(self.seed)
        count, size = len(self.redrawn), self.batch_size
        while True:
            order = torch.randperm(count, generator=generator)
            for rows in order[: count // size * size].split(size):
                batch = self.truths.rows(rows)
                drawn = torch.rand(size, 1, 1, 1, generator=generator) < 0.5
                pictures = torch.where(drawn, self.redrawn[rows], batch.pictures).float() / 255
                mirrored = torch.rand(size, generator=generator) < 0.5
                pictures, batch = self._mirror(pictures, batch, mirrored)
                # As a sample may be: a little lighter or darker, and with some grain.
                light = 1 + 0.1 * torch.randn(size, 3, 1, 1, generator=generator)
                grain = 0.03 * torch.rand(size, 1, 1, 1, generator=generator)
                pictures = pictures * light + grain * torch.randn(pictures.shape, generator=generator)
                yield pictures.clamp(0, 1), batch

    def _mirror(self, pictures: Tensor, batch: Truths, which: Tensor) -> tuple[Tensor, Truths]:
        def either(mirrored: Tensor, plain: Tensor) -> Tensor:
            return torch.where(which.view(-1, *[1] * (plain.ndim - 1)), mirrored, plain)

        normal = batch.normal.flip(-1)
        normal[:, 0] = 255 - normal[:, 0]
        joints = batch.joints[:, :, self.swap].clone()
        joints[..., 0] = pictures.shape[-1] - joints[..., 0]
        return either(pictures.flip(-1), pictures), Truths(
            batch.pictures,
            either(batch.nearness.flip(-1), batch.nearness),
            either(normal, batch.normal),
            either(batch.classes.flip(-1), batch.classes),
            either(joints, batch.joints),
        )


def _other_side(name: str) -> str:
    if "left" in name:
        return name.replace("left", "right")
    return name.replace("right", "left")


class TrainDetector(LightningModule):
    """All four at once: L1 of nearness, 1 - cosine of normals, cross-entropy of classes, weighted L2 of heat maps."""

    things: Tensor

    def __init__(self, net: SceneNet, learning_rate: float) -> None:
        super().__init__()
        self.net, self.learning_rate = net, learning_rate
        things = [position for position, name in enumerate(net.class_names) if name in THINGS]
        self.register_buffer("things", torch.tensor(things, dtype=torch.uint8), persistent=False)

    def training_step(self, batch: tuple[Tensor, Truths]) -> Tensor:
        pictures, truth = batch
        seen = self.net(pictures)
        nearness = F.l1_loss(seen.nearness, truth.nearness.float() / 255)
        normal = normal_loss(seen.normal, truth.normal.float() / 127.5 - 1, torch.isin(truth.classes, self.things))
        classes = F.cross_entropy(seen.classes, truth.classes.long(), ignore_index=UNKNOWN)
        wanted = heat_maps(truth.joints, seen.joints.shape[-2:])
        joints = ((1 + 20 * wanted) * (seen.joints - wanted) ** 2).mean()  # peaks are a thousandth of the plane
        return 4 * nearness + 2 * normal + classes + 50 * joints

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), self.learning_rate, weight_decay=1e-4)
        return one_cycle(optimizer, self.learning_rate, int(self.trainer.max_steps))


def normal_loss(
    seen: Float[Tensor, "b 3 h w"], true: Float[Tensor, "b 3 h w"], things: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """1 - cosine, four times its mean over the pictures and once more its mean over the things in them.

    Most of a picture is background whose normals are soon learnt; the mean over all leaves the relief of a wing flat.
    """
    apart = 1 - (seen * true).sum(1)
    return 4 * apart.mean() + (apart * things).sum() / things.sum().clamp(min=1)


def heat_maps(joints: Float[Tensor, "b n j 2"], shape: tuple[int, int]) -> Float[Tensor, "b j h w"]:
    """A peak of height 1 at each joint, positions in pixels of pictures twice that shape."""
    height, width = shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    at = joints[..., None, None, :] / 2
    apart = (x.to(joints) - at[..., 0]) ** 2 + (y.to(joints) - at[..., 1]) ** 2
    return torch.exp(-apart / (2 * SPREAD**2)).nan_to_num(0).amax(1)


def truths_of(
    scenes: Scenes, pictures: list[Path], indices: list[int], resolution: int, net: SceneNet
) -> tuple[Truths, list[Geometry]]:
    """The pictures of the items `indices`, with their geometry as the network is to see it, and as it is."""
    own = torch.full((256,), UNKNOWN, dtype=torch.uint8)
    for position, name in enumerate(net.class_names):
        own[NAMES.index(name)] = position
    count, size = len(indices), resolution
    found = Truths(
        torch.empty(count, 3, size, size, dtype=torch.uint8),
        torch.empty(count, size, size, dtype=torch.uint8),
        torch.empty(count, 3, size, size, dtype=torch.uint8),
        torch.empty(count, size, size, dtype=torch.uint8),
        torch.full((count, BODIES, len(net.joint_names), 2), torch.nan),
    )
    geometries = []
    for row, index in enumerate(track(indices, f"Geometry of {scenes.name}", transient=True)):
        geometry = scenes.geometry(index, size)
        geometries.append(geometry)
        found.pictures[row] = torch.from_numpy(load_image(pictures[row]).copy()).permute(2, 0, 1)
        found.nearness[row] = torch.from_numpy(np.round(geometry.nearness * 255).astype(np.uint8))
        normal = np.round((geometry.normal + 1) * 127.5).astype(np.uint8)
        found.normal[row] = torch.from_numpy(normal).permute(2, 0, 1)
        found.classes[row] = own[torch.from_numpy(geometry.classes).long()]
        for number, body in enumerate(geometry.skeletons or ()):
            for name, at in body.items():
                found.joints[row, number, net.joint_names.index(name)] = torch.tensor(at)
    return found, geometries


def nothing(count: int, resolution: int, base: Base, net: SceneNet, generator: torch.Generator) -> Truths:
    """What is no picture: noise of every coarseness, or what the base decodes of noise. There is nothing to see."""
    side = resolution // 8
    coarse = [2 ** (k % 5) for k in range(count)]
    grains = [torch.rand(1, 3, resolution // c, resolution // c, generator=generator) for c in coarse]
    pictures = torch.cat([F.interpolate(g, (resolution, resolution), mode="bilinear") for g in grains])
    half = count // 2
    latents = torch.randn(half, 4, side, side, generator=generator)
    with torch.inference_mode():
        decoded = [base.decode_latents(chunk.to(base.device)).cpu() for chunk in latents.split(16)]
    pictures[:half] = torch.cat(decoded) if decoded else pictures[:half]
    flat = torch.full((count, 3, resolution, resolution), 128, dtype=torch.uint8)
    flat[:, 2] = 255
    return Truths(
        (pictures * 255).round().byte(),
        torch.zeros(count, resolution, resolution, dtype=torch.uint8),
        flat,
        torch.full((count, resolution, resolution), UNKNOWN, dtype=torch.uint8),
        torch.full((count, BODIES, len(net.joint_names), 2), torch.nan),
    )


@torch.inference_mode()
def redraw(
    base: Base, pictures: UInt8[Tensor, "n 3 h w"], noise: float, generator: torch.Generator
) -> UInt8[Tensor, "n 3 h w"]:
    """Each picture as the base's VAE draws it, from its latents with up to so much noise."""
    drawn = []
    for chunk in track(pictures.split(16), "Reconstructions", transient=True):
        latents = base.encode_images(chunk.float() / 255)
        level = noise * torch.rand(len(chunk), 1, 1, 1, generator=generator)
        grain = torch.randn(latents.shape, generator=generator)
        drawn.append((base.decode_latents(latents + (level * grain).to(latents)) * 255).round().byte().cpu())
    return torch.cat(drawn)


def run(cfg: DictConfig) -> None:
    """Train the detector and write it, with its card and scores, to `detector/` of the run folder."""
    began = time.perf_counter()
    seed_everything(cfg.seed, verbose=False)
    net: SceneNet = instantiate(cfg.net, _convert_="all")
    base = Base.load(cfg.base.path)
    parts, heldout = [], {}
    for scenes in map(instantiate, cfg.pictures.values()):
        folder = generate(
            scenes, Path("data") / f"{scenes.name}-{cfg.resolution}", cfg.resolution, cfg.pictures_per_set
        )
        items = read_folder(folder, limit=cfg.pictures_per_set)
        train, held = [], []
        for index, found in enumerate(digest_all(items)):
            if isinstance(found, InputError):
                raise found
            (held if is_held_out(found.target, cfg.heldout) else train).append(index)
        parts.append(truths_of(scenes, [items[i].target for i in train], train, cfg.resolution, net)[0])
        held = held[: cfg.heldout_items]
        if held:
            heldout[scenes.name] = truths_of(scenes, [items[i].target for i in held], held, cfg.resolution, net)
    generator = torch.Generator().manual_seed(cfg.seed)
    pictures = sum(len(part.pictures) for part in parts)
    parts.append(nothing(round(cfg.nothing * pictures), cfg.resolution, base, net, generator))
    truths = Truths(*(torch.cat(part) for part in zip(*parts, strict=True)))
    redrawn = redraw(base, truths.pictures, NOISE, generator)

    run_folder = new_run_folder(cfg)
    stage, watch = TrainDetector(net, cfg.training.learning_rate), LastLoss()
    trainer: Trainer = instantiate(
        cfg.trainer,
        max_steps=cfg.training.max_steps,
        callbacks=[WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(cfg.ema_decay)), watch, RunProgress()],
        logger=False,
        enable_checkpointing=False,
    )
    views = Views(truths, redrawn, net.joint_names, cfg.training.batch_size, cfg.seed)
    trainer.fit(stage, DataLoader(views, batch_size=None))
    folder = run_folder / "detector"
    net.float().save(folder)

    net = SceneNet.load(folder)
    facts: dict[str, Any] = {
        "recipe": f"`python run.py {' '.join(given_overrides())}`",
        "commit": git_commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "seconds, beside whatever else ran": round(time.perf_counter() - began),
        "training pictures": pictures,
        "pictures of nothing": len(truths.pictures) - pictures,
        "steps": f"{cfg.training.max_steps} × {cfg.training.batch_size}",
        "loss, mean of the last 200 steps": watch.mean,
        "parameters": f"{sum(p.numel() for p in net.parameters()):,}",
    }
    tiles, captions = [], []
    for name, (truth, geometries) in heldout.items():
        redrawn = redraw(base, truth.pictures, 0.0, generator)
        for kind, shown in (("pictures", truth.pictures), ("reconstructions", redrawn)):
            facts |= scores(net, name, kind, shown, geometries)
        tiles += sheet_rows(net, redrawn, geometries, cfg.sheet_rows)
        captions += [f"{name}: as the VAE draws it", *(what for c in CONDITIONS for what in _heads(c))] * min(
            cfg.sheet_rows, len(geometries)
        )
    contact_sheet(np.stack(tiles), captions, columns=1 + 2 * len(CONDITIONS)).save(folder / "samples.png")
    shown = "Pictures; beside each the true map and the one that the detector sees: depth, normals, classes, joints"
    write_card(folder, cfg.card_title, cfg.card_introduction, facts, shown)
    rich.print(f"The detector is in {folder}; look at samples.png and README.md there.")


def _heads(condition: GeometricCondition) -> tuple[str, str]:
    name = type(condition).__name__.lower()
    return f"{name}: true", "seen"


def scores(
    net: SceneNet, name: str, kind: str, pictures: UInt8[Tensor, "n 3 h w"], geometries: list[Geometry]
) -> dict[str, str]:
    """How well what the network sees agrees with the truth: by each condition's measure, means over pictures."""
    found = {}
    for condition in CONDITIONS:
        if isinstance(condition, Pose) and geometries[0].skeletons is None:
            continue
        agreements = [
            condition.compare(condition.draw(net.detect(picture)), condition.draw(geometry))
            for picture, geometry in zip(_images(pictures), geometries, strict=True)
        ]
        fidelity, published = np.mean([(one.fidelity, one.published) for one in agreements], axis=0)
        key = f"{name}, {len(geometries)} held-out {kind}: {type(condition).__name__.lower()}"
        found[key] = f"{published:.2f} ({condition.measure}); fidelity {fidelity:.3f}"
    return found


def sheet_rows(
    net: SceneNet, pictures: UInt8[Tensor, "n 3 h w"], geometries: list[Geometry], rows: int
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """A picture, then for each condition its true map and the one that the network sees."""
    tiles = []
    for picture, geometry in list(zip(_images(pictures), geometries, strict=True))[:rows]:
        seen = net.detect(picture)
        tiles.append(picture)
        for condition in CONDITIONS:
            bare = isinstance(condition, Pose) and geometry.skeletons is None
            tiles += [np.zeros_like(picture) if bare else condition.draw(geometry), condition.draw(seen)]
    return tiles


def _images(pictures: UInt8[Tensor, "n 3 h w"]) -> list[UInt8[np.ndarray, "h w 3"]]:
    return list(pictures.permute(0, 2, 3, 1).contiguous().numpy())
