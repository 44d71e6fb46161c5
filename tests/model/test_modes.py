"""Links that are left out, bases that are unlocked, and branches that are no copy."""

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cnx.base import Base
from cnx.errors import InputError
from cnx.init import GaussianControl, Scratch, SDCopy
from cnx.model import Controlled, Full, LargeScale, Light, SmallScale


@pytest.fixture
def small(own_tiny: Base, tiny_conf: DictConfig) -> SmallScale:
    torch.manual_seed(0)
    model = SmallScale(own_tiny, tiny_conf.hint_channels)
    SDCopy()(own_tiny, model.branch)
    return model


def reached(model: Controlled, inputs: dict[str, Tensor], lr: float = 0.1) -> set[str]:
    """The parameters that gradient reaches in a step of plain descent, which is then taken."""
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=lr)
    optimizer.zero_grad()
    (model(**inputs) - 1).square().mean().backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters()), "nothing unused, for DDP"
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return names


def test_small_scale_trains_the_middle_link_and_then_the_whole_branch_but_no_skip(
    small: SmallScale, inputs: dict[str, Tensor]
) -> None:
    assert small.control(**inputs).down == ()
    first, second, third = (reached(small, inputs) for _ in range(3))
    middle = {f"branch.controlnet_mid_block.{kind}" for kind in ("weight", "bias")}
    hint = {name for name, _ in small.named_parameters() if name.startswith("branch.controlnet_cond_embedding.")}
    assert first == middle
    assert middle < second and not {name for name in second & hint if "conv_out" not in name}
    assert third == {name for name, _ in small.named_parameters() if name.startswith("branch.")}


def test_small_scale_does_less_work_than_full(own_tiny: Base, tiny_conf: DictConfig, inputs: dict[str, Tensor]) -> None:
    def flops(model: Controlled) -> int:
        for parameter in model.parameters():
            parameter.grad = None
        with FlopCounterMode(display=False) as counter:
            model(**inputs).sum().backward()
        return counter.get_total_flops()

    full, small = Full(own_tiny, tiny_conf.hint_channels), SmallScale(own_tiny, tiny_conf.hint_channels)
    # A 1×1 convolution of a map: 2 operations for each weight and pixel, forward and in each of two gradients.
    sides = [link.shape[-1] for link in full.control(**inputs).down]
    convolutions = full.branch.controlnet_down_blocks
    skips = sum(
        3 * 2 * len(inputs["t"]) * side**2 * conv.weight.numel()
        for side, conv in zip(sides, convolutions, strict=True)
    )  # fmt: skip
    assert flops(full) - flops(small) == skips


def test_connecting_the_skips_changes_nothing_at_first_and_then_they_learn(
    small: SmallScale, inputs: dict[str, Tensor]
) -> None:
    for _ in range(3):
        reached(small, inputs, lr=0.5)
    with torch.no_grad():
        before = small(**inputs)
        assert not torch.equal(before, small(**inputs, strength=0))
        small.link("all")
        assert torch.equal(small(**inputs), before)
    skips = {name for name, _ in small.named_parameters() if "controlnet_down_blocks" in name}
    assert len(skips) == 12 and skips < reached(small, inputs)
    with torch.no_grad():
        assert small.branch.controlnet_down_blocks[0].weight.any()
        small.link("mid")
        assert small.control(**inputs).down == () and not small.skips[0].weight.any()


@torch.no_grad()
def test_small_scale_is_saved_as_a_controlnet_whose_skips_are_at_zero(
    small: SmallScale, tiny_conf: DictConfig, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    small.branch.controlnet_mid_block.weight.normal_(0, 0.1)
    small.save(tmp_path)
    assert small.links == "mid" and small.control(**inputs).down == ()
    saved = ControlNetModel.from_pretrained(tmp_path / "controlnet")
    assert isinstance(saved, ControlNetModel)
    x_t, t, text, control = inputs.values()
    down, mid = saved(x_t, t, text, control, return_dict=False)
    assert len(down) == 6 and not any(link.any() for link in down)
    torch.testing.assert_close(mid, small.control(**inputs).mid, rtol=1e-4, atol=1e-4)  # another memory layout
    loaded = SmallScale(small.base, tiny_conf.hint_channels)
    loaded.load(tmp_path)
    assert torch.equal(loaded(**inputs), small(**inputs))


def unlocked_names(part: str) -> set[str]:
    names = {name for name, _ in UNet2DConditionModel.from_pretrained("pretrained/tiny/unet").named_parameters()}  # pyright: ignore
    return {name for name in names if part == "all" or name.startswith(("up_blocks.", "conv_norm_out.", "conv_out."))}


@pytest.mark.parametrize("part", ["decoder", "all"])
def test_large_scale_trains_the_part_that_is_unlocked(
    own_tiny: Base, tiny_conf: DictConfig, inputs: dict[str, Tensor], part: str, monkeypatch: pytest.MonkeyPatch,
    repository: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(repository)
    model = LargeScale(own_tiny, tiny_conf.hint_channels, unlock=part, unlocked_lr=1e-3)  # type: ignore[arg-type]
    SDCopy()(own_tiny, model.branch)
    before = own_tiny.fingerprint("vae", "text_encoder")
    own_tiny.encode_text(["a bird"])
    names = reached(model, inputs)
    assert {name.removeprefix("base.unet.") for name in names if name.startswith("base.")} == unlocked_names(part)
    assert own_tiny.fingerprint("vae", "text_encoder") == before
    branch, base = model.parameter_groups()
    assert "lr" not in branch and base["lr"] == 1e-3 and len(base["params"]) == len(unlocked_names(part))
    assert all(p.dtype == torch.float32 for p in base["params"]), "masters"
    model.train()
    assert model.base.unet.up_blocks.training and model.base.unet.training == (part == "all")
    assert not model.base.vae.training
    model.unlock(None)
    assert not any(p.requires_grad for p in model.base.parameters()) and model.base_trained
    assert not model.base.unet.up_blocks.training and len(model.parameter_groups()) == 1


@torch.no_grad()
def test_a_trained_base_is_saved_to_the_bit_and_a_locked_one_is_not_saved(
    own_tiny: Base, tiny_conf: DictConfig, tmp_path: Path
) -> None:
    Full(own_tiny, tiny_conf.hint_channels).save(tmp_path / "locked")
    assert not (tmp_path / "locked" / "base").exists()
    model = LargeScale(own_tiny, tiny_conf.hint_channels, unlock="decoder", unlocked_lr=None)
    for _ in range(2):  # the second time over the first
        own_tiny.unet.conv_out.weight.normal_()  # no half precision holds these
        model.save(tmp_path)
    loaded = Base.load(str(tmp_path / "base")).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in own_tiny.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "controlnet", "locked"]


@pytest.mark.parametrize("kernel_size", [3, 1], ids=["lite", "mlp"])
def test_a_light_branch_fills_every_link_and_learns(
    own_tiny: Base, tiny_conf: DictConfig, inputs: dict[str, Tensor], kernel_size: int
) -> None:
    torch.manual_seed(0)
    model = Light(own_tiny, tiny_conf.hint_channels, kernel_size)  # type: ignore[arg-type]
    with torch.no_grad():
        wanted = Full(own_tiny, tiny_conf.hint_channels).control(**inputs)
        links = model.control(**inputs)
        assert [link.shape for link in links.down] == [link.shape for link in wanted.down]
        assert links.mid.shape == wanted.mid.shape
    convolutions = [module for module in model.branch.modules() if isinstance(module, torch.nn.Conv2d)]
    assert {module.kernel_size for module in convolutions} == {(1, 1), (kernel_size, kernel_size)}

    first, second, third = (reached(model, inputs) for _ in range(3))
    branch = {name for name, _ in model.named_parameters() if name.startswith("branch.")}
    hint = {name for name in branch if "controlnet_cond_embedding" in name}
    assert first == {
        name for name in branch if name.split(".")[1] in ("controlnet_down_blocks", "controlnet_mid_block")
    }
    assert second == branch - {name for name in hint if "conv_out" not in name}
    assert third == branch
    with torch.no_grad():
        down, mid = model.control(**inputs).down, model.control(**inputs).mid
        other = model.control(**{**inputs, "control": 1 - inputs["control"]})
        assert all((a != b).any() for a, b in zip((*down, mid), (*other.down, other.mid), strict=True))


def test_a_1x1_branch_sees_pixels_and_their_averages_alone(own_tiny: Base, tiny_conf: DictConfig) -> None:
    model = Light(own_tiny, tiny_conf.hint_channels, kernel_size=1)
    GaussianControl(std=0.3)(own_tiny, model.branch)
    x_t = torch.randn(1, 4, 16, 16)
    control = torch.zeros(1, 3, 128, 128)
    spot = control.clone()
    spot[..., 40:48, 80:88] = 1  # the eight by eight pixels under latent (5, 10)
    none: dict[str, Tensor] = {"t": torch.tensor([0]), "text": torch.zeros(1, 1, 1)}
    with torch.no_grad():
        one, other = (model.control(x_t, control=map, **none) for map in (control, spot))
    moved = (one.down[0] != other.down[0]).any(dim=1)[0]
    assert moved.nonzero().tolist() == [[5, 10]]
    assert (one.mid != other.mid).any(dim=1)[0].nonzero().tolist() == [[1, 2]]


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [3, 1], ids=["lite", "mlp"])
def test_a_light_branch_is_saved_and_loaded_and_no_other_kind_is_taken(
    own_tiny: Base, tiny_conf: DictConfig, inputs: dict[str, Tensor], tmp_path: Path, kernel_size: int
) -> None:
    model = Light(own_tiny, tiny_conf.hint_channels, kernel_size)  # type: ignore[arg-type]
    GaussianControl(std=0.1)(own_tiny, model.branch)
    model.save(tmp_path)
    again = Light(own_tiny, tiny_conf.hint_channels, kernel_size)  # type: ignore[arg-type]
    again.load(tmp_path)
    assert torch.equal(again(**inputs), model(**inputs))
    weights = load_file(tmp_path / "controlnet" / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == model.branch.state_dict().keys()
    full = Full(own_tiny, tiny_conf.hint_channels)
    with pytest.raises(InputError, match="holds a LightBranch, and this model's branch is a ControlNetModel"):
        full.load(tmp_path)
    full.save(tmp_path)
    with pytest.raises(InputError, match="holds a ControlNetModel, and this model's branch is a LightBranch"):
        model.load(tmp_path)
    with pytest.raises(InputError, match="no config.json"):
        model.load(tmp_path / "nowhere")


def test_a_model_is_brought_back_by_its_wiring(own_tiny: Base, tiny_conf: DictConfig) -> None:
    model = Full(own_tiny, tiny_conf.hint_channels)
    Scratch(random=())(own_tiny, model.branch)
    model.unlock("decoder")
    model.link("mid")
    model.unlock("all")
    other = Full(own_tiny, tiny_conf.hint_channels)
    other.rewire(model.wiring())
    assert other.wiring() == model.wiring() == {"links": "mid", "unlocked": "all", "base_trained": True}
    assert other.state_dict().keys() == model.state_dict().keys()
