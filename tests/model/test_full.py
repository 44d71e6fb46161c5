"""The paper's ControlNet on the shipped base."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from omegaconf import DictConfig
from torch import Tensor

from cnx.base import Base
from cnx.init import SDCopy
from cnx.model import Full


@pytest.fixture
def model(own_tiny: Base, tiny_conf: DictConfig) -> Full:
    """The branch as diffusers draws it: random, its zero convolutions at zero."""
    torch.manual_seed(0)
    return Full(own_tiny, tiny_conf.hint_channels)


def base_alone(model: Full, inputs: dict[str, Tensor], **links: object) -> Tensor:
    # In the memory layout of the model: another one may round differently.
    x_t = inputs["x_t"].contiguous(memory_format=torch.channels_last)
    return model.base.unet(x_t, inputs["t"], inputs["text"], **links).sample


def is_link(name: str) -> bool:
    """Whether a parameter of the branch is a zero convolution between branch and base."""
    return name.startswith(("controlnet_down_blocks.", "controlnet_mid_block."))


def test_gradient_reaches_zero_convolutions_first_and_the_branch_after_one_update(
    model: Full, inputs: dict[str, Tensor]
) -> None:
    SDCopy()(model.base, model.branch)
    before = {part: model.base.fingerprint(part) for part in ("unet", "vae", "text_encoder")}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def reached() -> set[str]:
        optimizer.zero_grad(set_to_none=False)
        (model(**inputs) - 1).square().mean().backward()
        moved = {name for name, p in model.branch.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        return moved

    first, second, third = reached(), reached(), reached()
    everything = {name for name, _ in model.branch.named_parameters()}
    hint = {name for name in everything if name.startswith("controlnet_cond_embedding.")}
    last_of_hint = {name for name in hint if ".conv_out." in name}  # itself at zero: what lies before waits once more
    assert first == {name for name in everything if is_link(name)}
    assert second == everything - (hint - last_of_hint)
    assert third == everything

    assert all(parameter.grad is None for parameter in model.base.parameters())
    assert {part: model.base.fingerprint(part) for part in before} == before


def test_training_mode_is_the_branch_s_alone(model: Full) -> None:
    model.train()
    assert all(module.training for module in model.branch.modules())
    assert not any(module.training for module in model.base.modules())
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in model.branch.parameters()}
    assert not any(module.training for module in model.eval().modules())


@torch.no_grad()
def test_strength_zero_is_the_base_alone_whatever_the_branch(model: Full, inputs: dict[str, Tensor]) -> None:
    for parameter in model.branch.parameters():
        parameter.fill_(math.nan)
    assert torch.equal(model(**inputs, strength=0), base_alone(model, inputs))


@torch.no_grad()
def test_strength_multiplies_every_link(model: Full, inputs: dict[str, Tensor]) -> None:
    for name, parameter in model.branch.named_parameters():
        if is_link(name):
            parameter.normal_(0, 0.1)
    links = model.control(**inputs)
    assert all(link.abs().max() > 1e-3 for link in (*links.down, links.mid))
    halved = [link * 0.5 for link in links.down]
    wanted = base_alone(
        model, inputs, down_block_additional_residuals=halved, mid_block_additional_residual=links.mid * 0.5
    )
    assert torch.equal(model(**inputs, strength=0.5), wanted)
    assert torch.equal(model(**inputs, strength=1.0), model(**inputs))
    assert (model(**inputs) - wanted).abs().max() > 1e-3


@torch.no_grad()
def test_every_link_and_the_map_matter(model: Full, inputs: dict[str, Tensor]) -> None:
    torch.manual_seed(2)
    for parameter in model.branch.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.3)
    reference = model(**inputs)
    assert (model(**{**inputs, "control": 1 - inputs["control"]}) - reference).abs().max() > 1e-4
    links = [name for name, _ in model.branch.named_parameters() if is_link(name) and name.endswith("weight")]
    assert len(links) == len(model.control(**inputs).down) + 1
    for name in links:
        weight = model.branch.get_parameter(name)
        kept = weight.clone()
        weight.zero_()
        assert (model(**inputs) - reference).abs().max() > 1e-5, name
        weight.copy_(kept)


@torch.no_grad()
def test_the_exported_branch_gives_diffusers_the_same_residuals_to_the_bit(
    model: Full, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    for name, parameter in model.branch.named_parameters():
        if is_link(name) or ".conv_out." in name:
            parameter.normal_(0, 0.1)
    model.save(tmp_path)
    loaded = ControlNetModel.from_pretrained(tmp_path / "controlnet")
    assert isinstance(loaded, ControlNetModel)
    loaded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_t, control = (inputs[key].contiguous(memory_format=torch.channels_last) for key in ("x_t", "control"))
    down, mid = loaded(x_t, inputs["t"], inputs["text"], control, return_dict=False)
    ours = model.control(**{**inputs, "x_t": x_t})
    assert len(down) == len(ours.down) and mid.any()
    assert all(torch.equal(theirs, link) for theirs, link in zip((*down, mid), (*ours.down, ours.mid), strict=True))
