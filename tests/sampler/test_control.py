"""When, where and how strongly control enters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MultiControlNetModel, StableDiffusionControlNetPipeline
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from cnx.model import Residuals
from cnx.sampler import DDIM, Control, GuessWeights, equal_weights, resolution_weights


def drawn(model: Any, inputs: dict[str, Tensor], *controls: Control, guidance: float = 9.0, steps: int = 5) -> Tensor:
    """By a sampler of ours, under the given controls."""
    text, null_text, noise = inputs["text"], inputs["null_text"], inputs["noise"]
    return DDIM(steps=steps, guidance=guidance).draw(model, text, null_text, noise, controls)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.25, 1.0), (0.3, 0.7)])
def test_start_and_end_are_diffusers_control_guidance(
    model: Any, inputs: dict[str, Tensor], drawn_by_diffusers: Any, start: float, end: float
) -> None:
    theirs = drawn_by_diffusers(
        StableDiffusionControlNetPipeline,
        model,
        inputs,
        image=inputs["control"],
        num_inference_steps=10,
        guidance_scale=9.0,
        control_guidance_start=start,
        control_guidance_end=end,
    )
    model.batches.clear()
    ours = drawn(model, inputs, Control(model, inputs["control"], start=start, end=end), steps=10)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert 0 < sum(speaks for _, speaks in model.batches) < 10, "where control is off, the branch is not run"


def test_start_zero_end_one_is_the_plain_drawing(model: Any, inputs: dict[str, Tensor]) -> None:
    plain = DDIM(steps=5)(model, **inputs)
    assert torch.equal(drawn(model, inputs, Control(model, inputs["control"], start=0.0, end=1.0)), plain)
    assert torch.equal(
        drawn(model, inputs, Control(model, inputs["control"], start=0.5, end=0.5)),
        DDIM(steps=5)(model, **inputs, strength=0.0),
    )


def test_several_controlnets_are_diffusers_multi_controlnet(
    model: Any, second_model: Any, inputs: dict[str, Tensor], drawn_by_diffusers: Any
) -> None:
    other_map = 1 - inputs["control"]
    theirs = drawn_by_diffusers(
        StableDiffusionControlNetPipeline,
        model,
        inputs,
        controlnet=MultiControlNetModel([model.branch, second_model.branch]),
        image=[inputs["control"], other_map],
        num_inference_steps=5,
        guidance_scale=9.0,
        controlnet_conditioning_scale=[1.0, 0.5],
        control_guidance_start=[0.0, 0.2],
        control_guidance_end=[0.6, 1.0],
    )
    first = Control(model, inputs["control"], end=0.6)
    second = Control(second_model, other_map, strength=0.5, start=0.2)
    torch.testing.assert_close(drawn(model, inputs, first, second), theirs, atol=1e-5, rtol=1e-5)
    assert (drawn(model, inputs, first) - theirs).abs().max() > 1e-3


def test_a_controlnet_without_skip_links_adds_to_the_middle_alone() -> None:
    full = Residuals((torch.ones(1, 2), torch.ones(1, 2)), torch.ones(1, 3))
    mid_only = Residuals((), torch.full((1, 3), 2.0))
    for both in (full + mid_only, mid_only + full):
        assert [link.sum().item() for link in (*both.down, both.mid)] == [2, 2, 9]


@pytest.mark.parametrize("guidance", [9.0, 1.0])
def test_guess_mode_with_their_scales_is_diffusers_guess_mode(
    model: Any, inputs: dict[str, Tensor], drawn_by_diffusers: Any, guidance: float
) -> None:
    theirs = drawn_by_diffusers(
        StableDiffusionControlNetPipeline,
        model,
        inputs,
        image=inputs["control"],
        num_inference_steps=5,
        guidance_scale=guidance,
        controlnet_conditioning_scale=0.8,
        guess_mode=True,
    )

    def their_weights(links: Any, x_t: Tensor) -> list[float]:
        return torch.logspace(-1, 0, len(links)).tolist()

    maps = inputs["control"]
    ours = drawn(
        model, inputs, Control(model, maps, 0.8, conditional_only=True, weights=their_weights), guidance=guidance
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    released = Control(model, maps, 0.8, conditional_only=True, weights=GuessWeights())
    assert (drawn(model, inputs, released, guidance=guidance) - theirs).abs().max() > 1e-3


def test_guess_mode_has_the_scales_of_the_released_code() -> None:
    thirteen = [torch.zeros(1)] * 13
    assert GuessWeights()(thirteen, torch.zeros(1)) == pytest.approx([0.825 ** (12 - i) for i in range(13)])


def test_resolution_weights_are_the_papers_at_512_px_and_keep_their_ratios_elsewhere() -> None:
    sides = [64] * 3 + [32] * 3 + [16] * 3 + [8] * 4  # SD's 12 skips and the middle
    links = [torch.zeros(1, 1, side, side) for side in sides]
    assert resolution_weights(links, torch.zeros(1, 4, 64, 64)) == [64 / side for side in sides]
    small = [torch.zeros(1, 1, side, 2 * side) for side in (16, 8, 4)]
    assert resolution_weights(small, torch.zeros(1, 4, 16, 32)) == [1, 2, 4]


def test_conditional_only_leaves_the_unconditional_half_to_the_base_and_weights_count(
    model: Any, inputs: dict[str, Tensor]
) -> None:
    maps, text = inputs["control"], inputs["text"]
    x_t = torch.cat([inputs["noise"]] * 2)
    t, both = torch.full((6,), 500), torch.cat([inputs["null_text"].expand_as(text), text])
    plain = Control(model, maps, 0.5).links(x_t, t, both)
    equal = Control(model, maps, 0.5, conditional_only=True, weights=equal_weights).links(x_t, t, both)
    coarse = Control(model, maps, 0.5, conditional_only=True, weights=resolution_weights).links(x_t, t, both)
    for all_of_it, half, weighted in zip(
        (*plain.down, plain.mid), (*equal.down, equal.mid), (*coarse.down, coarse.mid), strict=True
    ):
        assert all_of_it[:3].abs().max() > 0 and not half[:3].any() and not weighted[:3].any()
        torch.testing.assert_close(half[3:], all_of_it[3:], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(weighted[3:], half[3:] * (4 / half.shape[-1]))
    assert plain.down[0].shape[-1] != plain.mid.shape[-1], "else the weights would all be 1"
    everywhere, half_only = (drawn(model, inputs, Control(model, maps, conditional_only=c)) for c in (False, True))
    assert (everywhere - half_only).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("mode", "conditional_only", "weights"),
    [
        ("balanced", False, [1, 1, 1]),
        ("conditional", True, [1, 1, 1]),
        ("resolution", True, [1, 2, 4]),
        ("guess", True, [0.825**2, 0.825, 1]),
    ],
)
def test_each_control_mode_is_what_it_says(
    repository: Path, mode: str, conditional_only: bool, weights: list[float]
) -> None:
    file = repository / "conf" / "control_mode" / f"{mode}.yaml"
    control = instantiate(OmegaConf.load(file))(model=None, maps=torch.zeros(1))
    assert control.conditional_only == conditional_only and (control.start, control.end) == (0, 1)
    links = [torch.zeros(1, 1, side, side) for side in (8, 4, 2)]
    assert control.weights(links, torch.zeros(1, 4, 8, 8)) == pytest.approx(weights)


@pytest.mark.parametrize("conditional_only", [False, True])
def test_each_map_is_encoded_once_for_all_steps_and_none_is_kept_for_the_next_drawing(
    model: Any, second_model: Any, inputs: dict[str, Tensor], conditional_only: bool
) -> None:
    sizes: dict[str, list[int]] = {"first": [], "second": []}
    branches = {"first": model.branch, "second": second_model.branch}
    encoders = {name: branch.controlnet_cond_embedding for name, branch in branches.items()}
    for name, encoder in encoders.items():
        encoder.register_forward_hook(lambda module, maps, output, name=name: sizes[name].append(len(maps[0])))
    controls = [Control(one, inputs["control"], conditional_only=conditional_only) for one in (model, second_model)]
    once = drawn(model, inputs, *controls)
    assert sizes == {"first": [3], "second": [3]}
    assert all(branch.controlnet_cond_embedding is encoders[name] for name, branch in branches.items())

    with torch.no_grad():
        encoders["first"].conv_in.weight.mul_(-1)
    assert not torch.equal(drawn(model, inputs, *controls), once)


def test_links_of_an_encoded_map_are_those_of_the_map(model: Any, inputs: dict[str, Tensor]) -> None:
    given = {"x_t": inputs["noise"], "t": torch.full((3,), 500), "text": inputs["text"], "control": inputs["control"]}
    with torch.no_grad():
        wanted, found = model.control(**given), model.control(**given, encoded=model.encode(inputs["control"]))
    for ours, theirs in zip((*found.down, found.mid), (*wanted.down, wanted.mid), strict=True):
        assert torch.equal(ours, theirs)
