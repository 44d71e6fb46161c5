"""A ControlNet of toy size, and diffusers' own pipelines around the same weights."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from cnx.base import Base
from cnx.model import Full
from toys import toy_base

SD15_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


class Recorded(Full):
    """The model itself, keeping a list of (batch, whether control speaks) of each prediction."""

    def __init__(self, base: Base) -> None:
        super().__init__(base, hint_channels=(4, 8, 8, 8))
        self.batches: list[tuple[int, bool]] = []
        base.unet.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.batches.append((len(args[0] if args else kwargs["sample"]), "down_block_additional_residuals" in kwargs))


def toy_model(prediction_type: str = "epsilon", seed: int = 0) -> Recorded:
    """Random weights; the zero convolutions at zero would hide the control, so they are random too."""
    torch.manual_seed(seed)
    clip = CLIPTextConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    scheduler: Any = DDPMScheduler.from_config({**SD15_SCHEDULE, "prediction_type": prediction_type})
    base = toy_base(scheduler, CLIPTextModel(clip))
    model = Recorded(base)
    for name, weight in model.branch.named_parameters():
        if "controlnet_" in name:
            nn.init.normal_(weight, std=0.3)
    return cast(Recorded, model.eval())


@pytest.fixture
def model() -> Recorded:
    return toy_model()


@pytest.fixture
def second_model(model: Recorded) -> Recorded:
    """Another branch on the same base."""
    other = toy_model(seed=3)
    other.base = model.base
    return other


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "text": torch.randn(3, 5, 8, generator=generator),
        "null_text": torch.randn(1, 5, 8, generator=generator),
        "control": torch.rand(3, 3, 32, 32, generator=generator),
        "noise": torch.randn(3, 4, 4, 4, generator=generator),
    }


Drawn = Callable[..., Tensor]


@pytest.fixture
def drawn_by_diffusers(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Latents that a pipeline of diffusers draws: (pipeline class, model, inputs, controlnet, scheduler, settings).

    The pipeline's own draw of noise is replaced by `inputs["noise"]`.
    """

    def draw(
        kind: Any,
        model: Recorded,
        inputs: dict[str, Tensor],
        controlnet: Any = None,
        scheduler: Any = DDIMScheduler,
        **settings: Any,
    ) -> Tensor:
        pipeline = kind(
            vae=model.base.vae,
            text_encoder=model.base.text_encoder,
            tokenizer=None,
            unet=model.base.unet,
            controlnet=controlnet or model.branch,
            scheduler=scheduler.from_config(model.base.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        module = kind.__module__
        monkeypatch.setattr(f"{module}.randn_tensor", lambda shape, **_: inputs["noise"].clone())
        return pipeline(
            prompt_embeds=inputs["text"],
            negative_prompt_embeds=inputs["null_text"].expand_as(inputs["text"]),
            output_type="latent",
            **settings,
        ).images

    return draw
