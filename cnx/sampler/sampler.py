"""Sampling with classifier-free guidance under control."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cnx.base import in_chunks
from cnx.errors import InputError, check_whole
from cnx.model import Controlled
from cnx.sampler.control import Control


@dataclass(frozen=True)
class Picture:
    """A picture to begin from.

    Attributes:
        latents: its latents, as `Base.encode_images` makes them.
        strength: share of the sampling steps that are done, in (0, 1]: how far the drawing may go from it.
        mask: latents to be drawn anew (True); the others are kept. None: all are drawn, beginning from the picture.
    """

    latents: Float[Tensor, "b 4 h w"]
    strength: float = 1.0
    mask: Bool[Tensor, "b 1 h w"] | None = None

    def __getitem__(self, pictures: slice) -> "Picture":
        mask = None if self.mask is None else self.mask[pictures]
        return replace(self, latents=self.latents[pictures], mask=mask)


@dataclass
class Sampler:
    """Draws latents step by step with classifier-free guidance; what a step is, says the subclass's scheduler.

    The same steps, in the same order, as diffusers' ControlNet pipelines (text to image, image to image, inpainting)
    with that scheduler: given the same weights and the noise that their generator draws, the same image.

    Attributes:
        steps: network evaluations per image (the paper's 20).
        guidance: classifier-free guidance scale w, eps_uncond + w (eps_cond - eps_uncond). 9.0 is the paper's; a small
            base wants less (`base.guidance` in the config). At 1 the unconditional half is not computed.
        chunk: images drawn at once, which bounds memory; guidance doubles the batch that the network sees. Where the
            device has too little memory for them, it is halved until it does.
    """

    scheduler: ClassVar[Any]

    steps: int = 20
    guidance: float = 9.0
    chunk: int = 16

    def __post_init__(self) -> None:
        """Raise InputError for numbers that nothing can be drawn with."""
        check_whole("sampler.steps", self.steps)
        check_whole("sampler.chunk", self.chunk)
        if not isinstance(self.guidance, int | float) or not math.isfinite(self.guidance):
            raise InputError(f"sampler.guidance={self.guidance}: must be a number; 1 is no guidance")

    def __call__(
        self,
        model: Controlled,
        text: Float[Tensor, "b n d"],
        null_text: Float[Tensor, "#b n d"],
        control: Float[Tensor, "b m H W"],
        noise: Float[Tensor, "b 4 h w"],
        strength: float = 1.0,
    ) -> Float[Tensor, "b 4 h w"]:
        """Latents for prompts and control maps in [0, 1], with control in every step and both halves of guidance.

        At strength 0 the branch is skipped and the base draws alone; the rest as in `draw`.
        """
        return self.draw(model, text, null_text, noise, [Control(model, control, strength)])

    @torch.no_grad()
    def draw(
        self,
        model: Controlled,
        text: Float[Tensor, "b n d"],
        null_text: Float[Tensor, "#b n d"],
        noise: Float[Tensor, "b 4 h w"],
        controls: Sequence[Control] = (),
        picture: Picture | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Float[Tensor, "b 4 h w"]:
        """Latents, scaled as `Base.decode_latents` wants them.

        Args:
            model: its base draws.
            text: prompt embeddings.
            null_text: embedding of the empty (or a negative) prompt, for all items or one for each.
            noise: standard normal noise, from which the images grow.
            controls: each ControlNet's part; what they say is added up.
            picture: what to begin from, as SDEdit does (arXiv 2108.01073): noised to the first step done, of the
                `strength` share of the steps. Where its mask keeps latents, they are put back after each step, noised
                to that step's level (Blended Latent Diffusion, arXiv 2206.02779; RePaint, arXiv 2201.09865, draws
                fresh noise each time, here it is `noise` as in diffusers), and at the end they are the picture's own
                to the bit. With a mask and strength 1 the drawing begins from pure noise.
            on_step: called after each step of each chunk.

        Raises:
            InputError: a picture's strength that leaves no step to do.
        """
        null_text = null_text.expand(len(text), -1, -1)

        def draw(i: slice) -> Tensor:
            some = [control[i] for control in controls]
            return self._draw(model, text[i], null_text[i], noise[i], some, picture and picture[i], on_step)

        drawn, self.chunk = in_chunks(draw, len(noise), self.chunk)
        return drawn

    def _draw(
        self,
        model: Controlled,
        text: Tensor,
        null_text: Tensor,
        noise: Tensor,
        controls: Sequence[Control],
        picture: Picture | None,
        on_step: Callable[[], None],
    ) -> Tensor:
        # A fresh scheduler: its step tables are state, and the base's own must stay as training uses it.
        scheduler = self.scheduler.from_config(model.base.scheduler.config)
        scheduler.set_timesteps(self.steps, device=noise.device)
        timesteps = scheduler.timesteps
        if picture:
            timesteps = timesteps[len(timesteps) - int(len(timesteps) * picture.strength) :]
            if not len(timesteps):
                raise InputError(
                    f"image_strength={picture.strength:g}: less than one of {self.steps} sampling steps;"
                    " give a larger share"
                )
        mask = picture.mask if picture else None
        if picture and not (mask is not None and picture.strength == 1):
            x_t = self._noised(model, picture, noise, timesteps[0])
        else:
            x_t = noise * scheduler.init_noise_sigma

        for i, t in enumerate(timesteps):
            speaking = [control for control in controls if control.is_on(i, len(timesteps))]
            eps = self._predict(model, x_t, t, text, null_text, speaking)
            x_t = scheduler.step(eps, t, x_t, return_dict=False)[0]
            if picture and mask is not None:
                last = i + 1 == len(timesteps)
                known = picture.latents if last else self._noised(model, picture, noise, timesteps[i + 1])
                x_t = torch.where(mask, x_t, known)
            on_step()
        return x_t

    def _predict(
        self,
        model: Controlled,
        x_t: Tensor,
        t: Tensor,
        text: Tensor,
        null_text: Tensor,
        controls: Sequence[Control],
    ) -> Tensor:
        """The base's prediction at x_t with guidance, under the controls that are on."""
        guided = self.guidance != 1
        if guided:
            x_t, text = torch.cat([x_t, x_t]), torch.cat([null_text, text])
        x_t, t = x_t.contiguous(memory_format=torch.channels_last), t.expand(len(x_t))
        # Under autocast the network answers in half precision; the sampler's own sums stay in the noise's.
        if controls:
            links = reduce(add, [control.links(x_t, t, text) for control in controls])
            eps = model.linked(x_t, t, text, links).to(x_t.dtype)
        else:
            eps = model.base.unet(x_t, t, text).sample.to(x_t.dtype)
        if not guided:
            return eps
        eps_uncond, eps_cond = eps.chunk(2)
        return eps_uncond + self.guidance * (eps_cond - eps_uncond)

    @staticmethod
    def _noised(model: Controlled, picture: Picture, noise: Tensor, t: Tensor) -> Tensor:
        return model.base.scheduler.add_noise(picture.latents, noise, cast(Any, t.expand(len(noise))))
