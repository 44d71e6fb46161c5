"""Beginning from a picture: image to image, and inpainting."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor

from cnx.errors import InputError
from cnx.sampler import DDIM, Control, Picture, UniPC

SAMPLERS = [(DDIM, DDIMScheduler), (UniPC, UniPCMultistepScheduler)]


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(8))


@pytest.fixture
def mask() -> Tensor:
    """The right half is to be drawn anew."""
    return torch.tensor([False, False, True, True]).expand(3, 1, 4, 4)


def drawn(sampler: Any, model: Any, inputs: dict[str, Tensor], picture: Picture | None) -> Tensor:
    text, null_text, noise = inputs["text"], inputs["null_text"], inputs["noise"]
    return sampler.draw(model, text, null_text, noise, [Control(model, inputs["control"], end=0.8)], picture)


@pytest.mark.parametrize(("sampler", "scheduler"), SAMPLERS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_image_to_image_as_diffusers(
    model: Any,
    inputs: dict[str, Tensor],
    latents: Tensor,
    drawn_by_diffusers: Any,
    sampler: Any,
    scheduler: Any,
    strength: float,
) -> None:
    theirs = drawn_by_diffusers(
        StableDiffusionControlNetImg2ImgPipeline,
        model,
        inputs,
        scheduler=scheduler,
        image=latents,
        control_image=inputs["control"],
        strength=strength,
        num_inference_steps=8,
        guidance_scale=9.0,
        controlnet_conditioning_scale=1.0,
        control_guidance_end=0.8,
    )
    ours = drawn(sampler(steps=8), model, inputs, Picture(latents, strength))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("sampler", "scheduler"), SAMPLERS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_as_diffusers(
    model: Any,
    inputs: dict[str, Tensor],
    mask: Tensor,
    drawn_by_diffusers: Any,
    sampler: Any,
    scheduler: Any,
    strength: float,
) -> None:
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():  # a posterior without spread, since the pipeline draws from it and we take its mean
        model.base.vae.quant_conv.weight[4:] = 0
        model.base.vae.quant_conv.bias[4:] = -30
        latents = model.base.encode_images(pixels)
    theirs = drawn_by_diffusers(
        StableDiffusionControlNetInpaintPipeline,
        model,
        inputs,
        scheduler=scheduler,
        image=pixels,
        mask_image=torch.nn.functional.interpolate(mask.float(), scale_factor=8),
        control_image=inputs["control"],
        height=32,
        width=32,
        strength=strength,
        num_inference_steps=8,
        guidance_scale=9.0,
        controlnet_conditioning_scale=1.0,
        control_guidance_end=0.8,
    )
    ours = drawn(sampler(steps=8), model, inputs, Picture(latents, strength, mask))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", [DDIM, UniPC])
def test_what_the_mask_keeps_is_the_pictures_own_to_the_bit(
    model: Any, inputs: dict[str, Tensor], latents: Tensor, mask: Tensor, sampler: Any
) -> None:
    inpainted = drawn(sampler(steps=5), model, inputs, Picture(latents, 1.0, mask))
    keep = ~mask.expand_as(latents)
    assert torch.equal(inpainted[keep], latents[keep])
    assert (inpainted[~keep] - latents[~keep]).abs().min() > 0
    assert not torch.equal(inpainted[~keep], drawn(sampler(steps=5), model, inputs, None)[~keep]), (
        "it looks at the rest"
    )


def test_a_smaller_strength_stays_nearer_to_the_picture_and_does_fewer_steps(
    model: Any, inputs: dict[str, Tensor], latents: Tensor
) -> None:
    distances = []
    for strength, steps in ((0.1, 1), (0.5, 5), (1.0, 10)):
        model.batches.clear()
        picture = drawn(DDIM(steps=10, guidance=1.5), model, inputs, Picture(latents, strength))
        assert len(model.batches) == steps
        distances.append((picture - latents).abs().mean().item())
    assert distances == sorted(distances)
    with pytest.raises(InputError, match="image_strength=0.05"):
        drawn(DDIM(steps=10), model, inputs, Picture(latents, 0.05))


def test_chunks_take_their_own_part_of_the_picture_and_report_their_steps(
    model: Any, inputs: dict[str, Tensor], latents: Tensor, mask: Tensor
) -> None:
    picture = Picture(latents, 0.5, mask)
    whole = drawn(DDIM(steps=4), model, inputs, picture)
    done: list[None] = []
    text, null_text, noise = inputs["text"], inputs["null_text"], inputs["noise"]
    control = Control(model, inputs["control"], end=0.8)
    parts = DDIM(steps=4, chunk=2).draw(
        model, text, null_text, noise, [control], picture, on_step=lambda: done.append(None)
    )
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    assert len(done) == 2 * 2
