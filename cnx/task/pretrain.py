"""Pretrain a small Stable Diffusion from pictures and prompts alone: the recipe of `base=tiny`.

First the VAE, then text encoder and UNet together, as latent diffusion does (Rombach et al., CVPR 2022,
arXiv 2112.10752). No control map is ever read.
"""

import os
import platform
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from hydra.utils import instantiate
from jaxtyping import Float, UInt8
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset
from transformers import CLIPTextModel

from cnx.base import Base, train_tokenizer
from cnx.callback.progress import RunProgress
from cnx.data.folder import Item, load_image, read_folder
from cnx.data.folder import fit as fit_square
from cnx.data.split import digest_all, is_held_out
from cnx.data.synthetic import generate
from cnx.errors import InputError
from cnx.report.card import write_card
from cnx.report.sheet import contact_sheet
from cnx.task.run_folder import git_commit, given_overrides, new_run_folder


class Draws(IterableDataset):
    """An endless, seeded stream of batches of pictures (or latents) and prompts, each epoch a fresh permutation."""

    def __init__(self, pictures: Tensor, prompts: list[str], batch_size: int, seed: int) -> None:
        self.pictures, self.prompts = pictures, prompts
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(len(self.prompts), generator=generator)
            for rows in order[: len(order) // self.batch_size * self.batch_size].split(self.batch_size):
                yield self.pictures[rows], [self.prompts[row] for row in rows.tolist()]


def one_cycle(optimizer: Optimizer, learning_rate: float, steps: int) -> dict[str, Any]:
    """Lightning's record of an optimizer with a short warm-up and a cosine decay to nothing, counted in steps."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.05)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def edges(images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """Horizontal and vertical differences at full and at half size."""
    for scaled in (images, F.avg_pool2d(images, 2)):
        yield scaled[..., :, 1:] - scaled[..., :, :-1]
        yield scaled[..., 1:, :] - scaled[..., :-1, :]


class TrainVAE(LightningModule):
    """An autoencoder on pictures: L1, L2 for colours, an L1 on differences for sharp edges, and a small KL term.

    Without the L2, edges come at the price of colours: a red bird of the right outline is brown. The perceptual and
    adversarial terms of latent diffusion are left out: they need networks trained elsewhere, and flat, clean drawings
    do without.
    """

    def __init__(
        self, vae: AutoencoderKL, learning_rate: float, l2_weight: float, edge_weight: float, kl_weight: float
    ) -> None:
        super().__init__()
        self.vae = vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.learning_rate = learning_rate
        self.l2_weight, self.edge_weight, self.kl_weight = l2_weight, edge_weight, kl_weight

    def training_step(self, batch: tuple[UInt8[Tensor, "b 3 h w"], list[str]]) -> Tensor:
        pictures, _ = batch
        x = pictures.float() / 127.5 - 1
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
        posterior = self.vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        drawn = self.vae.decode(posterior.sample()).sample.float()
        pixel_loss = F.l1_loss(drawn, x) + self.l2_weight * F.mse_loss(drawn, x)
        edge_loss = torch.stack([F.l1_loss(a, b) for a, b in zip(edges(drawn), edges(x), strict=True)]).sum()
        loss = pixel_loss + self.edge_weight * edge_loss + self.kl_weight * posterior.kl().mean()
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.vae.parameters(), self.learning_rate, weight_decay=1e-4)
        return one_cycle(optimizer, self.learning_rate, int(self.trainer.max_steps))


class TrainTextToImage(LightningModule):
    """Text encoder and UNet together on cached latents, with prompts dropped so that guidance works.

    At SD's last timesteps a small latent's mean still shows through the noise, so that a UNet reads colours from there
    instead of from the prompt, and samples come in random ones. `noise_offset` hides the mean: the weight of noise
    that a whole channel shares (N. Guttenberg, Diffusion with offset noise, 2023).
    """

    def __init__(self, base: Base, learning_rate: float, dropout: float, noise_offset: float) -> None:
        super().__init__()
        self.base = base
        self.learning_rate, self.dropout, self.noise_offset = learning_rate, dropout, noise_offset
        base.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        for part in (base.unet, base.text_encoder):
            part.requires_grad_(True).train()

    def training_step(self, batch: tuple[Float[Tensor, "b 4 h w"], list[str]]) -> Tensor:
        x_0, prompts = batch
        dropped = torch.rand(len(prompts)) < self.dropout
        prompts = ["" if drop else prompt for drop, prompt in zip(dropped, prompts, strict=True)]
        eps = torch.randn_like(x_0) + self.noise_offset * torch.randn_like(x_0[:, :, :1, :1])
        steps = self.base.scheduler.config["num_train_timesteps"]
        t: Any = torch.randint(steps, (len(x_0),), device=x_0.device)
        x_t = self.base.scheduler.add_noise(x_0, eps, t)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        predicted = self.base.unet(x_t, t, self.base.encode_text(prompts)).sample.float()
        loss = F.mse_loss(predicted, eps)
        return loss

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.base.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=1e-2)
        return one_cycle(optimizer, self.learning_rate, int(self.trainer.max_steps))


def read_pictures(items: list[Item], resolution: int) -> tuple[UInt8[Tensor, "n 3 h w"], list[str]]:
    """The items' images and prompts, all in memory."""
    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(lambda item: fit_square(load_image(item.target), resolution), items))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), [item.prompt for item in items]


def fit(cfg: DictConfig, stage: LightningModule, draws: Draws, steps: int) -> float:
    """Run one stage for `steps` optimizer steps, to its averaged weights; returns the mean of its last losses."""
    watch = LastLoss()
    trainer = instantiate(
        cfg.trainer,
        max_steps=steps,
        callbacks=[WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(cfg.ema_decay)), watch, RunProgress()],
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(stage, DataLoader(draws, batch_size=None))
    stage.eval().requires_grad_(False)
    return watch.mean


class LastLoss(Callback):
    """The mean of the last 200 losses of a stage."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=200)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)


def train_vae(cfg: DictConfig, pictures: UInt8[Tensor, "n 3 h w"], prompts: list[str]) -> tuple[AutoencoderKL, float]:
    """The first stage: an autoencoder whose scaling factor brings its latents to unit variance; and its final loss."""
    vae: AutoencoderKL = instantiate(cfg.vae, _convert_="all")
    training = cfg.vae_training
    stage = TrainVAE(vae, training.learning_rate, training.l2_weight, training.edge_weight, training.kl_weight)
    loss = fit(cfg, stage, Draws(pictures, prompts, training.batch_size, cfg.seed), training.max_steps)
    sample = pictures[:: max(1, len(pictures) // 512)]
    with torch.no_grad():
        means = [vae.encode(chunk.float() / 127.5 - 1, return_dict=False)[0].mean for chunk in sample.split(32)]
    vae.register_to_config(scaling_factor=round(1 / torch.cat(means).std().item(), 5))
    return vae, loss


def train_text_to_image(
    cfg: DictConfig, vae: AutoencoderKL, pictures: UInt8[Tensor, "n 3 h w"], prompts: list[str]
) -> tuple[Base, float]:
    """The second stage: a text encoder with a vocabulary of these prompts and a UNet on the VAE's latents."""
    base = new_base(cfg, vae, prompts) if cfg.start_from is None else Base.load(cfg.start_from)
    with torch.no_grad():
        latents = torch.cat([base.encode_images(chunk.float() / 255) for chunk in pictures.split(64)])
    training = cfg.unet_training
    stage = TrainTextToImage(base, training.learning_rate, training.prompt_dropout, training.noise_offset)
    loss = fit(cfg, stage, Draws(latents, prompts, training.batch_size, cfg.seed), training.max_steps)
    base.requires_grad_(False).eval()
    return base, loss


def new_base(cfg: DictConfig, vae: AutoencoderKL, prompts: list[str]) -> Base:
    """A base around a trained VAE: random text encoder and UNet, and a tokenizer that knows the words of `prompts`."""
    tokenizer = train_tokenizer({*prompts, cfg.default_prompt}, cfg.text_encoder.max_position_embeddings)
    shape = instantiate(
        cfg.text_encoder,
        _convert_="all",
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Base(
        vae=vae,
        text_encoder=CLIPTextModel(shape),
        tokenizer=tokenizer,
        unet=instantiate(cfg.unet, _convert_="all"),
        scheduler=instantiate(cfg.scheduler, _convert_="all"),
    )


def run(cfg: DictConfig) -> None:
    """Pretrain a base and write it, with its card, to `base/` of the run folder."""
    begun = time.perf_counter()
    seed_everything(cfg.seed, verbose=False)
    train, heldout = [], []
    for scenes in map(instantiate, cfg.pictures.values()):
        folder = Path("data") / f"{scenes.name}-{cfg.resolution}"
        generate(scenes, folder, cfg.resolution, cfg.pictures_per_set)
        items = read_folder(folder, limit=cfg.pictures_per_set)
        for item, found in zip(items, digest_all(items), strict=True):
            if isinstance(found, InputError):
                raise found
            (heldout if is_held_out(found.target, cfg.heldout) else train).append(item)
    pictures, prompts = read_pictures(train, cfg.resolution)

    run_folder = new_run_folder(cfg)
    if cfg.start_from is None:
        vae, vae_loss = train_vae(cfg, pictures, prompts)
        vae.save_pretrained(run_folder / "vae")
    else:
        vae, vae_loss = Base.load(cfg.start_from).vae, None
    base, unet_loss = train_text_to_image(cfg, vae, pictures, prompts)
    folder = run_folder / "base"
    base.save(folder)
    draw_samples(Base.load(str(folder)), list(cfg.card_prompts), cfg.base.guidance).save(folder / "samples.png")
    facts = {
        "recipe": f"`python run.py {' '.join(given_overrides())}`",
        "commit": git_commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "precision": cfg.trainer.precision,
        "seconds": round(time.perf_counter() - begun),
        "training pictures": len(train),
        "held-out pictures": len(heldout),
        "VAE": f"{cfg.vae_training.max_steps} steps × {cfg.vae_training.batch_size}" if vae_loss else cfg.start_from,
        "VAE: loss, mean of the last 200 steps": vae_loss,
        "VAE: PSNR on held-out pictures, dB": psnr(base, read_pictures(heldout, cfg.resolution)[0]),
        "UNet": f"{cfg.unet_training.max_steps} steps × {cfg.unet_training.batch_size}",
        "UNet: loss, mean of the last 200 steps": unet_loss,
        "parameters: VAE, text encoder, UNet": ", ".join(
            f"{sum(p.numel() for p in part.parameters()):,}" for part in (base.vae, base.text_encoder, base.unet)
        ),
    }
    write_card(folder, cfg.card_title, cfg.card_introduction, facts, "Samples for fixed prompts")
    rich.print(f"The base is in {folder}; look at samples.png and README.md there.")


def draw_samples(base: Base, prompts: list[str], guidance: float) -> Image.Image:
    """Two pictures a prompt, from fixed noise, each row under its prompt."""
    pipeline = base.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    pictures = pipeline(
        [prompt for prompt in prompts for _ in range(2)],
        num_inference_steps=20,
        guidance_scale=guidance,
        generator=generator,
        output_type="np",
    )
    drawn = (np.asarray(pictures[0]) * 255).round().astype(np.uint8)
    return contact_sheet(drawn, prompts, columns=4)


@torch.no_grad()
def psnr(base: Base, pictures: UInt8[Tensor, "n 3 h w"]) -> float:
    """The mean peak signal-to-noise ratio of the VAE's reconstructions, in dB."""
    ratios = []
    for chunk in pictures.split(32):
        image = chunk.float() / 255
        error = (base.decode_latents(base.encode_images(image)) - image).square().mean(dim=(1, 2, 3))
        ratios.append(-10 * error.log10())
    return torch.cat(ratios).mean().item()
