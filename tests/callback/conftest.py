"""A ControlNet of toy size under a LightningModule with the contract that the probe asks for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import DDPMScheduler
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnx.data.module import Batch, HeldOut, Resumable
from cnx.model import Full
from cnx.objective import Denoise
from toys import toy_base

ITEMS, SIDE = 5, 32


def tiny_model() -> Full:
    """Random weights, always the same; the branch's zero convolutions at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scheduler = DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False)
        base = toy_base(scheduler)
        return Full(base, hint_channels=(4, 8, 8, 8))


class Toy(LightningModule):
    """Draws noise and timesteps from the global random state, so that any disturbance of it shows in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model()
        self.objective = Denoise()
        self.null_text = torch.zeros(1, 5, 8)
        self.micro_batches = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.model.branch.training and not self.model.base.unet.training
        self.micro_batches += 1
        eps, t = torch.randn_like(batch.latents), torch.randint(1000, (len(batch.latents),))
        return self.objective(self.model, batch, eps, t).mean()

    def clocks(self) -> dict[str, int]:
        return {
            "optimizer_step": self.trainer.global_step,
            "micro_batch": self.micro_batches,
            "samples_seen": 2 * self.micro_batches,
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.branch.parameters(), lr=0.1)


class ToyData(LightningDataModule):
    """Random latents in an order of their own, that does not depend on where a run was stopped."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(cast(Dataset, [self.batch(i) for i in range(20)]), batch_size=None)

    def batch(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)
        return Batch(
            latents=torch.randn(2, 4, 4, 4, generator=generator),
            text=torch.randn(2, 5, 8, generator=generator),
            control=torch.rand(2, 3, SIDE, SIDE, generator=generator),
            index=torch.tensor([2 * index, 2 * index + 1]),
        )

    def heldout(self, n: int) -> HeldOut:
        n = min(n, ITEMS)
        generator = torch.Generator().manual_seed(999)
        return HeldOut(
            index=list(range(n)),
            prompts=[f"picture {i}" for i in range(n)],
            control=torch.rand(n, 3, SIDE, SIDE, generator=generator),
            target=torch.rand(n, 3, SIDE, SIDE, generator=generator),
            latents=torch.randn(n, 4, 4, 4, generator=generator),
            text=torch.randn(n, 5, 8, generator=generator),
        )


Fit = Callable[..., tuple[Toy, Trainer]]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Train the toy in `tmp_path/name` under the callbacks given; trainer settings and `ckpt_path` as keywords."""

    def run(
        *callbacks: Callback, name: str = "run", ckpt_path: Path | None = None, **settings: Any
    ) -> tuple[Toy, Trainer]:
        torch.manual_seed(7)
        toy = Toy()
        trainer = Trainer(
            **{"max_epochs": -1, "logger": False, **settings},
            callbacks=list(callbacks),
            accelerator="cpu",
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / name,
        )
        trainer.fit(toy, datamodule=ToyData(), ckpt_path=ckpt_path)
        return toy, trainer

    return run


@pytest.fixture
def toy_model() -> Callable[[], Full]:
    return tiny_model


class OneBatch(ToyData):
    """The same batch again and again, so that a run that goes on needs no order; epochs of six."""

    def train_dataloader(self) -> DataLoader:
        return Resumable(cast(Dataset, [self.batch(0)] * 6), batch_size=None)


@pytest.fixture
def toy_data() -> Callable[[], LightningDataModule]:
    return OneBatch
