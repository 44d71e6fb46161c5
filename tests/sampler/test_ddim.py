from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionControlNetPipeline, UniPCMultistepScheduler
from torch import Tensor

from cnx.sampler import DDIM, UniPC


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("guidance", "strength"), [(9.0, 1.0), (3.0, 0.4)])
@pytest.mark.parametrize(("sampler", "scheduler"), [(DDIM, DDIMScheduler), (UniPC, UniPCMultistepScheduler)])
def test_the_same_latents_as_diffusers_own_pipeline(
    model: Any,
    inputs: dict[str, Tensor],
    drawn_by_diffusers: Any,
    prediction_type: str,
    guidance: float,
    strength: float,
    sampler: Any,
    scheduler: Any,
) -> None:
    model.base.scheduler = DDPMScheduler.from_config(model.base.scheduler.config, prediction_type=prediction_type)
    theirs = drawn_by_diffusers(
        StableDiffusionControlNetPipeline,
        model,
        inputs,
        scheduler=scheduler,
        image=inputs["control"],
        num_inference_steps=5,
        guidance_scale=guidance,
        controlnet_conditioning_scale=strength,
    )
    ours = sampler(steps=5, guidance=guidance)(model, **inputs, strength=strength)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_latents_that_the_papers_and_the_original_s_steps_give(
    model: Any, inputs: dict[str, Tensor], prediction_type: str
) -> None:
    model.base.scheduler = DDPMScheduler.from_config(model.base.scheduler.config, prediction_type=prediction_type)
    # Steps 1, 51, ..., 951 of 1,000, as the original's sampler counts them, on from where its schedule begins.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0).float()
    x = inputs["noise"]
    with torch.no_grad():
        for t in range(951, 0, -50):
            signal, before = kept[t], kept[max(t - 50, 0)]
            half = partial(model, x, torch.full((3,), t), control=inputs["control"])
            guided, free = half(text=inputs["text"]), half(text=inputs["null_text"].expand(3, -1, -1))
            predicted = free + 9 * (guided - free)
            if prediction_type == "epsilon":
                noise, clean = predicted, (x - (1 - signal).sqrt() * predicted) / signal.sqrt()
            else:  # v (T. Salimans and J. Ho, Progressive distillation, appendix D)
                noise = signal.sqrt() * predicted + (1 - signal).sqrt() * x
                clean = signal.sqrt() * x - (1 - signal).sqrt() * predicted
            x = before.sqrt() * clean + (1 - before).sqrt() * noise  # DDIM, equation 12, with no noise added
    ours = DDIM(steps=20, guidance=9.0)(model, **inputs)
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


def test_control_text_guidance_strength_and_sampler_all_matter(model: Any, inputs: dict[str, Tensor]) -> None:
    reference = DDIM(steps=4)(model, **inputs)
    others = {
        "control": DDIM(steps=4)(model, **{**inputs, "control": 1 - inputs["control"]}),
        "text": DDIM(steps=4)(model, **{**inputs, "text": -inputs["text"]}),
        "null_text": DDIM(steps=4)(model, **{**inputs, "null_text": -inputs["null_text"]}),
        "guidance": DDIM(steps=4, guidance=2.0)(model, **inputs),
        "strength": DDIM(steps=4)(model, **inputs, strength=0.5),
        "sampler": UniPC(steps=4)(model, **inputs),
    }
    for name, other in others.items():
        assert (other - reference).abs().max() > 1e-4, f"{name} changes nothing"


def test_strength_zero_is_the_plain_base(model: Any, inputs: dict[str, Tensor]) -> None:
    for parameter in model.branch.parameters():
        parameter.data.fill_(float("nan"))
    plain = DDIM(steps=4)(model, **inputs, strength=0.0)
    assert plain.isfinite().all()
    other_map = {**inputs, "control": 1 - inputs["control"]}
    assert torch.equal(plain, DDIM(steps=4)(model, **other_map, strength=0.0))


def test_guidance_one_leaves_the_unconditional_half_out(model: Any, inputs: dict[str, Tensor]) -> None:
    alone = DDIM(steps=4, guidance=1.0)(model, **inputs)
    assert {size for size, _ in model.batches} == {3}
    both = DDIM(steps=4, guidance=1.0 + 1e-7)(model, **inputs)
    assert {size for size, _ in model.batches} == {3, 6}
    torch.testing.assert_close(alone, both, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", [DDIM, UniPC])
def test_chunks_bound_the_batch_and_change_nothing(model: Any, inputs: dict[str, Tensor], sampler: Any) -> None:
    whole = sampler(steps=4)(model, **inputs)
    model.batches.clear()
    parts = sampler(steps=4, chunk=2)(model, **inputs)
    assert [size for size, _ in model.batches] == [4] * 4 + [2] * 4
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)  # sums differ in their last bits with the batch


def test_nothing_random_nothing_kept_for_gradients_and_the_base_s_scheduler_untouched(
    model: Any, inputs: dict[str, Tensor]
) -> None:
    state, config = torch.get_rng_state(), dict(model.base.scheduler.config)
    timesteps = model.base.scheduler.timesteps.clone()
    first = DDIM(steps=4)(model, **inputs)
    assert not first.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert config == dict(model.base.scheduler.config) and torch.equal(timesteps, model.base.scheduler.timesteps)
    assert torch.equal(first, DDIM(steps=4)(model, **inputs))
