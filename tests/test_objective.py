"""The denoising loss against the paper's formulas, computed apart from diffusers."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from omegaconf import DictConfig
from torch import Tensor

from cnx.base import Base
from cnx.data.module import Batch
from cnx.init import GaussianControl
from cnx.model import Full
from cnx.objective import Denoise

T = torch.tensor([0, 250, 999])
# SD 1.5: the square roots of beta rise evenly from sqrt(0.00085) to sqrt(0.012).
ALPHA_BAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def model_that_predicts(base: Base, conf: DictConfig, prediction_type: str) -> Full:
    torch.manual_seed(0)
    scheduler: Any = DDPMScheduler.from_config(base.scheduler.config, prediction_type=prediction_type)
    base.scheduler = scheduler
    model = Full(base, conf.hint_channels)
    GaussianControl(std=0.1)(base, model.branch)
    return model


@pytest.fixture
def batch(tiny: Base) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch(
        latents=torch.randn(3, 4, 16, 16, generator=generator),
        text=tiny.encode_text(["a red bird", "", "blue circle"]),
        control=torch.rand(3, 3, 128, 128, generator=generator),
        index=torch.arange(3),
    )


@pytest.fixture
def eps() -> Tensor:
    return torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(4))


def test_the_shipped_base_has_the_noise_schedule_of_sd_15(tiny: Base) -> None:
    np.testing.assert_allclose(tiny.scheduler.alphas_cumprod.numpy(), ALPHA_BAR, rtol=1e-4)
    assert tiny.scheduler.config["prediction_type"] == "epsilon"


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_loss_is_the_mean_square_of_what_is_missed(
    own_tiny: Base, tiny_conf: DictConfig, batch: Batch, eps: Tensor, prediction_type: str, strength: float
) -> None:
    model = model_that_predicts(own_tiny, tiny_conf, prediction_type)
    loss = Denoise()(model, batch, eps, T, strength)

    alpha_bar = torch.from_numpy(ALPHA_BAR).float()[T][:, None, None, None]
    x_t = alpha_bar.sqrt() * batch.latents + (1 - alpha_bar).sqrt() * eps
    v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * batch.latents
    target = v if prediction_type == "v_prediction" else eps
    predicted = model(x_t, T, batch.text, batch.control, strength)
    wanted = [((predicted[i] - target[i]) ** 2).sum() / target[i].numel() for i in range(3)]
    torch.testing.assert_close(loss, torch.stack(wanted), rtol=1e-3, atol=1e-5)
    assert loss.min() > 1e-3


@torch.no_grad()
def test_an_item_s_loss_does_not_depend_on_the_others(
    own_tiny: Base, tiny_conf: DictConfig, batch: Batch, eps: Tensor
) -> None:
    model = model_that_predicts(own_tiny, tiny_conf, "epsilon")
    together = Denoise()(model, batch, eps, T)
    alone = Denoise()(model, Batch(*(field[1:2] for field in batch)), eps[1:2], T[1:2])
    torch.testing.assert_close(together[1:2], alone)


@torch.no_grad()
def test_v_is_what_turns_x_t_back_into_the_picture(tiny: Base, batch: Batch, eps: Tensor) -> None:
    # x_0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v, Salimans and Ho, arXiv 2202.00512.
    alpha_bar = torch.from_numpy(ALPHA_BAR).float()[T][:, None, None, None]
    x_t = tiny.scheduler.add_noise(batch.latents, eps, T)  # type: ignore[arg-type]
    v = tiny.scheduler.get_velocity(batch.latents, eps, T)  # type: ignore[arg-type]
    torch.testing.assert_close(alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * v, batch.latents, rtol=1e-3, atol=1e-4)
