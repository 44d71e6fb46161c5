from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from cnx.sampler import DDIM

SD15_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


class Controlled(nn.Module):
    """The model's contract: base, branch and a forward with strength."""

    def __init__(self, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        self.branch = ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=(4, 8, 8, 8))
        for name, weight in self.branch.named_parameters():
            if "controlnet_" in name:  # zero convolutions at zero would hide the control
                nn.init.normal_(weight, std=0.3)
        self.base = SimpleNamespace(scheduler=scheduler, unet=self.unet)
        self.batches: list[tuple[int, float]] = []

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, control: Tensor, strength: float = 1.0) -> Tensor:
        self.batches.append((len(x_t), strength))
        if strength == 0:
            return self.unet(x_t, t, text).sample
        down, mid = self.branch(x_t, t, text, control, return_dict=False)
        return self.unet(
            x_t,
            t,
            text,
            down_block_additional_residuals=[link * strength for link in down],
            mid_block_additional_residual=mid * strength,
        ).sample


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    scheduler = DDPMScheduler.from_config({**SD15_SCHEDULE, "prediction_type": request.param})
    return Controlled(scheduler).eval()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "text": torch.randn(3, 5, 8, generator=generator),
        "null_text": torch.randn(1, 5, 8, generator=generator),
        "control": torch.rand(3, 3, 32, 32, generator=generator),
        "noise": torch.randn(3, 4, 4, 4, generator=generator),
    }


def drawn_by_diffusers(model: Any, inputs: dict[str, Tensor], **settings: Any) -> Tensor:
    clip = CLIPTextConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    pipeline = StableDiffusionControlNetPipeline(
        # Four sizes, so that the pipeline's scale from pixels to latents is 8.
        vae=AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=2,
        ),
        text_encoder=CLIPTextModel(clip),
        tokenizer=None,
        unet=model.unet,
        controlnet=model.branch,
        scheduler=DDIMScheduler.from_config(model.base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=inputs["text"],
        negative_prompt_embeds=inputs["null_text"].expand_as(inputs["text"]),
        image=inputs["control"],
        output_type="latent",
        **settings,
    ).images


@pytest.mark.parametrize("guidance", [9.0, 3.0])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_the_same_latents_as_diffusers_own_pipeline(
    model: Any, inputs: dict[str, Tensor], guidance: float, strength: float
) -> None:
    theirs = drawn_by_diffusers(
        model,
        inputs,
        num_inference_steps=7,
        guidance_scale=guidance,
        controlnet_conditioning_scale=strength,
        generator=torch.Generator().manual_seed(5),
    )
    # The pipeline's generator draws nothing but the noise, in one piece.
    noise = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    ours = DDIM(steps=7, guidance=guidance)(model, **{**inputs, "noise": noise}, strength=strength)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_control_text_guidance_and_strength_all_matter(model: Any, inputs: dict[str, Tensor]) -> None:
    reference = DDIM(steps=4)(model, **inputs)
    others = {
        "control": DDIM(steps=4)(model, **{**inputs, "control": 1 - inputs["control"]}),
        "text": DDIM(steps=4)(model, **{**inputs, "text": -inputs["text"]}),
        "null_text": DDIM(steps=4)(model, **{**inputs, "null_text": -inputs["null_text"]}),
        "guidance": DDIM(steps=4, guidance=2.0)(model, **inputs),
        "strength": DDIM(steps=4)(model, **inputs, strength=0.5),
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


def test_chunks_bound_the_batch_and_change_nothing(model: Any, inputs: dict[str, Tensor]) -> None:
    whole = DDIM(steps=4)(model, **inputs)
    model.batches.clear()
    parts = DDIM(steps=4, chunk=2)(model, **inputs)
    assert [size for size, _ in model.batches] == [4] * 4 + [2] * 4
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


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
