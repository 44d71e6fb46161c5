"""The denoising loss against the paper's formulas, computed apart from diffusers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from omegaconf import DictConfig
from torch import Tensor

from cnx.base import Base
from cnx.data.module import Batch
from cnx.errors import InputError
from cnx.init import GaussianControl
from cnx.model import Full
from cnx.objective import Denoise, MinSNR

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


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_is_the_loss_of_x_0_weighted_by_the_snr_up_to_gamma(
    own_tiny: Base, tiny_conf: DictConfig, batch: Batch, eps: Tensor, prediction_type: str
) -> None:
    model = model_that_predicts(own_tiny, tiny_conf, prediction_type)
    loss = MinSNR(gamma=5.0)(model, batch, eps, T)

    alpha_bar = torch.from_numpy(ALPHA_BAR).float()[T][:, None, None, None]
    x_t = alpha_bar.sqrt() * batch.latents + (1 - alpha_bar).sqrt() * eps
    predicted = model(x_t, T, batch.text, batch.control)
    if prediction_type == "v_prediction":
        x_0 = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * predicted
    else:
        x_0 = (x_t - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
    weight = torch.clamp(alpha_bar / (1 - alpha_bar), max=5.0).flatten()
    wanted = weight * (x_0 - batch.latents).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, wanted, rtol=5e-3, atol=1e-5)
    assert weight[0] == 5.0 > weight[1] > weight[2]
    plain = Denoise()(model, batch, eps, T)
    torch.testing.assert_close(MinSNR(gamma=1e9)(model, batch, eps, T)[1:], _unweighted(plain, prediction_type)[1:])


@pytest.mark.parametrize("gamma", [0, -1.0, float("nan")])
def test_a_gamma_that_would_unlearn_is_refused(gamma: float) -> None:
    with pytest.raises(InputError, match=f"objective.gamma={gamma}: must be above 0"):
        MinSNR(gamma=gamma)


def _unweighted(plain: Tensor, prediction_type: str) -> Tensor:
    """What is left of min-SNR without a bound: the loss of x_0 times its SNR."""
    alpha_bar = torch.from_numpy(ALPHA_BAR).float()[T]
    return plain * alpha_bar if prediction_type == "v_prediction" else plain


@torch.no_grad()
def test_at_zero_terminal_snr_the_last_step_is_pure_noise_and_its_loss_is_finite(
    own_tiny: Base, tiny_conf: DictConfig, batch: Batch, eps: Tensor
) -> None:
    model = model_that_predicts(own_tiny, tiny_conf, "v_prediction")
    scheduler: Any = DDPMScheduler.from_config(model.base.scheduler.config, rescale_betas_zero_snr=True)
    model.base.scheduler = scheduler
    last = torch.full((3,), 999)
    assert torch.equal(scheduler.add_noise(batch.latents, eps, last), eps)
    assert torch.equal(scheduler.get_velocity(batch.latents, eps, last), -batch.latents)
    for objective in (Denoise(), MinSNR()):
        loss = objective(model, batch, eps, last)
        assert loss.isfinite().all() and (loss > 0).all() == (type(objective) is Denoise)


def test_a_base_that_predicts_noise_where_there_is_nothing_else_is_refused(own_tiny: Base, tmp_path: Path) -> None:
    own_tiny.save(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text()) | {"rescale_betas_zero_snr": True}
    file.write_text(json.dumps(settings))
    with pytest.raises(InputError, match="rescale_betas_zero_snr"):
        Base.load(str(tmp_path))
    file.write_text(json.dumps(settings | {"prediction_type": "v_prediction"}))
    assert Base.load(str(tmp_path)).scheduler.alphas_cumprod[-1] == 0
