"""A branch on the shipped base, as each init leaves it."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from omegaconf import DictConfig
from torch import Tensor

from cnx.base import Base
from cnx.errors import InputError
from cnx.init import GaussianControl, GaussianZeroConv, Pretrained, Scratch, SDCopy
from cnx.model import Controlled, Full, LargeScale, Light, SmallScale

MODELS: dict[str, Callable[..., Controlled]] = {
    "full": Full,
    "small_scale": SmallScale,
    "large_scale": partial(LargeScale, unlock="decoder", unlocked_lr=1e-5),
    "lite": partial(Light, kernel_size=3),
    "mlp": partial(Light, kernel_size=1),
}


@pytest.fixture
def model(own_tiny: Base, tiny_conf: DictConfig) -> Full:
    """The branch as diffusers draws it: random, its zero convolutions at zero."""
    torch.manual_seed(0)
    return Full(own_tiny, tiny_conf.hint_channels)


def base_alone(model: Controlled, inputs: dict[str, Tensor]) -> Tensor:
    # In the memory layout of the model: another one may round differently.
    x_t = inputs["x_t"].contiguous(memory_format=torch.channels_last)
    return model.base.unet(x_t, inputs["t"], inputs["text"]).sample


def is_link(name: str) -> bool:
    """Whether a parameter of the branch is a zero convolution between branch and base."""
    return name.startswith(("controlnet_down_blocks.", "controlnet_mid_block."))


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("init", ["sd_copy", "scratch", "random_control", "gaussian_control", "gaussian_zero_conv"])
def test_zero_convolutions_leave_the_base_s_prediction_as_it_is_to_the_bit_and_gaussian_ones_do_not(
    own_tiny: Base, tiny_conf: DictConfig, inputs: dict[str, Tensor], kind: str, init: str
) -> None:
    inits: dict[str, Any] = {
        "sd_copy": SDCopy(),
        "scratch": Scratch(),
        "random_control": Scratch(random=()),
        "gaussian_control": GaussianControl(),
        "gaussian_zero_conv": GaussianZeroConv(),
    }
    torch.manual_seed(0)
    model = MODELS[kind](own_tiny, tiny_conf.hint_channels)
    if init == "sd_copy" and kind in ("lite", "mlp"):
        with pytest.raises(InputError, match="init=random_control"):
            inits[init](own_tiny, model.branch)
        return
    inits[init](own_tiny, model.branch)
    assert torch.equal(model(**inputs), base_alone(model, inputs)) == (not init.startswith("gaussian"))
    assert (own_tiny.path is None) == (init == "scratch")
    assert all(not parameter.any() for parameter in model.skips.parameters())


def test_sd_copy_copies_encoder_and_middle_and_nothing_else(model: Full) -> None:
    drawn = {name: tensor.clone() for name, tensor in model.branch.state_dict().items()}
    SDCopy()(model.base, model.branch)
    unet = model.base.unet.state_dict()
    wanted = ("conv_in.", "time_embedding.", "down_blocks.", "mid_block.")
    for name, tensor in model.branch.state_dict().items():
        assert torch.equal(tensor, unet[name] if name.startswith(wanted) else drawn[name]), name
    assert all(name in drawn for name in unet if name.startswith(wanted))
    assert all(not tensor.any() for name, tensor in model.branch.named_parameters() if is_link(name))


@torch.no_grad()
def test_gaussian_control_draws_every_weight_and_zeroes_every_bias(model: Full, inputs: dict[str, Tensor]) -> None:
    base = model.base.fingerprint("vae", "text_encoder", "unet")
    for parameter in model.branch.parameters():
        parameter.fill_(math.nan)  # whatever is not drawn anew shows
    GaussianControl()(model.base, model.branch)

    weights = {name: p for name, p in model.branch.named_parameters() if name.endswith("weight")}
    biases = {name: p for name, p in model.branch.named_parameters() if name.endswith("bias")}
    assert len(weights) + len(biases) == len(list(model.branch.parameters()))
    assert any("norm" in name for name in weights) and any(is_link(name) for name in weights)
    assert all(not bias.any() for bias in biases.values())
    # Mean and standard deviation of n draws from N(0, std²) stray by std/√n and std/√2n: five of those are allowed.
    for name, weight in [*weights.items(), ("all", torch.cat([w.flatten() for w in weights.values()]))]:
        stray = 5 * 0.01 / math.sqrt(weight.numel())
        assert abs(weight.mean().item()) < stray, name
        assert abs(weight.std().item() - 0.01) < stray, name

    assert (model(**inputs) - base_alone(model, inputs)).abs().max() > 0
    assert model.base.fingerprint("vae", "text_encoder", "unet") == base
    assert model.base.path is not None


@pytest.mark.parametrize("parts", [("unet", "vae"), ("unet",), ("vae",)], ids="+".join)
def test_scratch_draws_the_parts_it_names_and_keeps_the_rest(model: Full, tiny: Base, parts: tuple) -> None:
    branch = {name: tensor.clone() for name, tensor in model.branch.state_dict().items()}
    Scratch(parts)(model.base, model.branch)
    for part in ("unet", "vae", "text_encoder"):
        assert (model.base.fingerprint(part) != tiny.fingerprint(part)) == (part in parts), part
    for part in parts:
        there, here = getattr(tiny, part).state_dict(), getattr(model.base, part).state_dict()
        # Norms start at the same ones and zeros everywhere; matrices and kernels do not.
        assert all(not torch.equal(there[name], here[name]) for name in here if here[name].dim() > 1)
    assert all(torch.equal(tensor, branch[name]) for name, tensor in model.branch.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.base.parameters())
    assert model.base.path is None


def test_a_scratch_base_is_saved_and_loaded_to_the_bit(model: Full, tmp_path: Path) -> None:
    Scratch()(model.base, model.branch)
    model.base.save(tmp_path)
    loaded = Base.load(str(tmp_path)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.base.state_dict().items())


def test_gaussian_zero_conv_draws_the_zero_convolutions_of_a_copy_and_nothing_else(model: Full) -> None:
    drawn = {name: tensor.clone() for name, tensor in model.branch.state_dict().items()}
    GaussianZeroConv(std=0.02)(model.base, model.branch)
    unet = model.base.unet.state_dict()
    for name, tensor in model.branch.state_dict().items():
        if is_link(name) or name.startswith("controlnet_cond_embedding.conv_out."):
            assert not drawn[name].any()
            if name.endswith("weight"):
                assert abs(tensor.std().item() - 0.02) < 5 * 0.02 / math.sqrt(2 * tensor.numel()), name
            else:
                assert not tensor.any(), name
        else:
            assert torch.equal(tensor, unet.get(name, drawn[name])), name


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_pretrained_takes_a_branch_from_a_run_folder_or_from_the_branch_s_own(
    own_tiny: Base, tiny_conf: DictConfig, inputs: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    model = MODELS[kind](own_tiny, tiny_conf.hint_channels)
    GaussianControl(std=0.1)(own_tiny, model.branch)
    model.save(tmp_path)
    for folder in (tmp_path, tmp_path / "controlnet"):
        other = MODELS[kind](own_tiny, tiny_conf.hint_channels)
        Pretrained(str(folder))(own_tiny, other.branch)
        assert torch.equal(other(**inputs), model(**inputs))
        assert not torch.equal(other(**inputs), base_alone(other, inputs))


def test_pretrained_leaves_unconnected_skips_at_zero(model: Full, tiny_conf: DictConfig, tmp_path: Path) -> None:
    GaussianControl()(model.base, model.branch)
    model.save(tmp_path)
    small = SmallScale(model.base, tiny_conf.hint_channels)
    Pretrained(str(tmp_path))(model.base, small.branch)
    assert small.branch.controlnet_mid_block.weight.any()
    assert not any(parameter.any() for parameter in small.skips.parameters())


def test_pretrained_says_what_does_not_fit(model: Full, tiny_conf: DictConfig, tmp_path: Path) -> None:
    def complaint(path: Path, of: Controlled = model) -> str:
        with pytest.raises(InputError) as error:
            Pretrained(str(path))(of.base, of.branch)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no such folder" in complaint(tmp_path / "nowhere")
    assert "no config.json" in complaint(tmp_path)
    Full(model.base, (8, 16, 32, 64)).save(tmp_path / "hint")
    line = complaint(tmp_path / "hint")
    assert "conditioning_embedding_out_channels [8, 16, 32, 64] there, [16, 16, 32, 64] here" in line
    widths: Any = {"block_out_channels": (32, 32), "down_block_types": ("DownBlock2D",) * 2, "norm_num_groups": 16}
    ControlNetModel(**widths, cross_attention_dim=64).save_pretrained(tmp_path / "wide")
    line = complaint(tmp_path / "wide")
    assert "block_out_channels [32, 32] there, [64, 128, 128] here" in line
    assert "cross_attention_dim 64 there, 128 here" in line
    light = Light(model.base, tiny_conf.hint_channels, kernel_size=3)
    assert "holds a ControlNetModel, and this model's branch is a LightBranch" in complaint(tmp_path / "hint", light)
    light.save(tmp_path / "light")
    assert "holds a LightBranch" in complaint(tmp_path / "light")
    pixels = Light(model.base, tiny_conf.hint_channels, kernel_size=1)
    assert "kernel_size 3 there, 1 here" in complaint(tmp_path / "light", pixels)
    assert "no controlnet/ there yet" in complaint(unfinished_run(tmp_path))


def unfinished_run(root: Path) -> Path:
    (root / "run").mkdir()
    (root / "run" / "config.yaml").touch()
    return root / "run"
