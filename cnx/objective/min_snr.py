"""Min-SNR weighting of the denoising loss."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from cnx.data.module import Batch
from cnx.errors import InputError
from cnx.model import Controlled
from cnx.objective.denoise import Denoise


@dataclass
class MinSNR(Denoise):
    """The denoising loss, weighted so that no timestep counts more than its part (Hang et al., arXiv 2303.09556).

    In the loss of x_0 the weight is min(SNR, γ) with SNR = ᾱ_t / (1 − ᾱ_t) (section 3.4). Of the same loss in terms of
    the noise that is min(SNR, γ) / SNR, and in terms of v it is min(SNR, γ) / (SNR + 1). Control gain is that of the
    weighted loss then.

    Attributes:
        gamma: γ, above 0; the paper's is 5.

    Raises:
        InputError: a γ under which nothing would be learnt.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise InputError(f"objective.gamma={self.gamma}: must be above 0; the paper's is 5")

    def __call__(
        self,
        model: Controlled,
        batch: Batch,
        eps: Float[Tensor, "b 4 h w"],
        t: Int[Tensor, " b"],
        strength: float = 1.0,
    ) -> Float[Tensor, " b"]:
        """The weighted squared error of each item, for noise `eps` and timesteps `t`."""
        schedule = model.base.scheduler
        alpha_bar = schedule.alphas_cumprod.to(t.device)[t]
        snr = alpha_bar / (1 - alpha_bar)
        predicts_v = schedule.config["prediction_type"] == "v_prediction"
        weight = snr.clamp(max=self.gamma) / (snr + 1 if predicts_v else snr)
        return weight * super().__call__(model, batch, eps, t, strength)
