"""The denoising loss of latent diffusion, in the parameterisation that the base was trained with."""

from typing import Any

import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from cnx.data.module import Batch
from cnx.model import Controlled


class Denoise:
    """E‖ε − ε_θ(z_t, t, c_text, c_control)‖² (ControlNet, arXiv 2302.05543, equation 5).

    For a base that predicts v, as SD 2.1 at 768 px does, the target is v = √ᾱ_t ε − √(1 − ᾱ_t) x_0 (Salimans and Ho,
    arXiv 2202.00512).
    """

    def __call__(
        self,
        model: Controlled,
        batch: Batch,
        eps: Float[Tensor, "b 4 h w"],
        t: Int[Tensor, " b"],
        strength: float = 1.0,
    ) -> Float[Tensor, " b"]:
        """The mean squared error of each item, for noise `eps` and timesteps `t`."""
        schedule = model.base.scheduler
        x_0 = batch.latents
        steps: Any = t  # diffusers asks for 32 bits and takes any integers
        x_t = schedule.add_noise(x_0, eps, steps)
        target = schedule.get_velocity(x_0, eps, steps) if schedule.config["prediction_type"] == "v_prediction" else eps
        predicted = model(x_t, t, batch.text, batch.control, strength)
        return reduce(F.mse_loss(predicted.float(), target, reduction="none"), "b c h w -> b", "mean")
