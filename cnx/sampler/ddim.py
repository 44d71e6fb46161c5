"""DDIM sampling with classifier-free guidance."""

from dataclasses import dataclass
from typing import cast

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from cnx.model import Controlled


@dataclass
class DDIM:
    """Draws latents by DDIM (Song et al., arXiv 2010.02502, eq. 12 with eta = 0: only the noise given is random).

    The same steps, in the same order, as diffusers' StableDiffusionControlNetPipeline with a DDIMScheduler and without
    guess mode: given the same weights and the noise that its generator draws, the same image.

    Attributes:
        steps: network evaluations per image (the paper's 20).
        guidance: classifier-free guidance scale w, eps_uncond + w (eps_cond - eps_uncond). 9.0 is the paper's; a small
            base wants less (`base.guidance` in the config). At 1 the unconditional half is not computed.
        chunk: images drawn at once, which bounds memory; guidance doubles the batch that the network sees.
    """

    steps: int = 20
    guidance: float = 9.0
    chunk: int = 16

    @torch.no_grad()
    def __call__(
        self,
        model: Controlled,
        text: Float[Tensor, "b n d"],
        null_text: Float[Tensor, "#b n d"],
        control: Float[Tensor, "b 3 H W"],
        noise: Float[Tensor, "b 4 h w"],
        strength: float = 1.0,
    ) -> Float[Tensor, "b 4 h w"]:
        """Latents for prompts and control maps, scaled as `Base.decode_latents` wants them.

        Args:
            text: prompt embeddings.
            null_text: embedding of the empty (or a negative) prompt, for all items or one for each.
            control: control maps in [0, 1]. Both halves of guidance get them.
            noise: standard normal noise, from which the images grow.
            strength: scales what the control branch adds; at 0 the branch is skipped and the base draws alone.
        """
        null_text = null_text.expand(len(text), -1, -1)
        chunks = [slice(i, i + self.chunk) for i in range(0, len(noise), self.chunk)]
        return torch.cat([self._draw(model, text[i], null_text[i], control[i], noise[i], strength) for i in chunks])

    def _draw(
        self, model: Controlled, text: Tensor, null_text: Tensor, control: Tensor, noise: Tensor, strength: float
    ) -> Tensor:
        # A fresh scheduler: its step tables are state, and the base's own must stay as training uses it.
        scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(model.base.scheduler.config))
        scheduler.set_timesteps(self.steps, device=noise.device)
        guided = self.guidance != 1
        if guided:
            text = torch.cat([null_text, text])
            control = torch.cat([control, control])

        x_t = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x_in = torch.cat([x_t, x_t]) if guided else x_t
            # Under autocast the network answers in half precision; the sampler's own sums stay in the noise's.
            eps = model(x_in, t.expand(len(x_in)), text, control, strength).to(noise.dtype)
            if guided:
                eps_uncond, eps_cond = eps.chunk(2)
                eps = eps_uncond + self.guidance * (eps_cond - eps_uncond)
            x_t = scheduler.step(eps, cast(int, t), x_t, return_dict=False)[0]
        return x_t
