"""ControlNets in every format: the same bytes there and back, and one line for each file that is none."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cnx.base import Base, kind_of, read_weights
from cnx.errors import InputError
from cnx.init import Pretrained
from cnx.model import (
    DiffusersFolder,
    Format,
    Full,
    Light,
    OriginalFile,
    OriginalWithBase,
    SavedBranch,
    plain_settings,
    read_saved,
)

# Each format, and a name that it takes.
FORMATS: dict[str, tuple[Format, str]] = {
    "diffusers": (DiffusersFolder(), "canny"),
    "original": (OriginalFile([".pth", ".ckpt"]), "canny.pth"),
    "safetensors": (OriginalFile([".safetensors"]), "canny.safetensors"),
    "with_base": (OriginalWithBase([".ckpt"]), "canny.ckpt"),
    "with_base_safetensors": (OriginalWithBase([".safetensors"]), "with_base.safetensors"),
}


def saved_of(model: Full, dtype: torch.dtype) -> SavedBranch:
    settings = plain_settings(model.branch.config)
    weights = {name: tensor.to(dtype) for name, tensor in model.branch.state_dict().items()}
    return SavedBranch("ControlNetModel", settings, weights, frozenset(settings))


@pytest.fixture(scope="module")
def model(small: Base, scatter: Callable[[nn.Module], None]) -> Full:
    torch.manual_seed(1)
    model = Full(copy.deepcopy(small), (16, 32, 96, 256))
    scatter(model.branch)
    return model


@pytest.fixture(scope="module")
def branch(model: Full) -> SavedBranch:
    """Its skips in bfloat16, a middle that holds no number, and the rest in half precision."""
    saved = saved_of(model, torch.float16)
    for name, tensor in saved.weights.items():
        if name.startswith("controlnet_down_blocks."):
            saved.weights[name] = tensor.bfloat16()
    saved.weights["controlnet_mid_block.bias"] = torch.full_like(saved.weights["controlnet_mid_block.bias"], torch.nan)
    return saved


def same_bytes(a: Tensor, b: Tensor) -> bool:
    views = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*views)


def check_equal(a: SavedBranch, b: SavedBranch) -> None:
    assert a.kind == b.kind
    assert a.settings == {key: b.settings[key] for key in a.settings}
    assert a.weights.keys() == b.weights.keys()
    assert all(same_bytes(a.weights[name], b.weights[name]) for name in a.weights)


def test_through_every_format_and_back_to_the_first_come_the_same_bytes(
    branch: SavedBranch, small: Base, tmp_path: Path
) -> None:
    # What is read is equal to what was written to the bit, so that the order of the formats does not matter.
    source = branch
    for number, (form, name) in enumerate([*FORMATS.values(), *FORMATS.values()][: len(FORMATS) + 1]):
        folder = tmp_path / str(number)
        form.write(source, folder / name, small.original_weights)
        source = read_saved(folder / name, "trust")
        check_equal(branch, source)
        assert [path.name for path in folder.iterdir()] == [name]  # nothing is left beside it


def test_the_published_architectures_need_no_word_beside_their_weights(branch: SavedBranch, tmp_path: Path) -> None:
    for name in ("original", "safetensors"):
        form, file = FORMATS[name]
        form.write(branch, tmp_path / file, dict)
        weights, metadata = read_weights(tmp_path / file, "trust")
        assert metadata.keys() <= {"format"}
        assert all(key.startswith("control_model.") for key in weights)
    assert torch.load(tmp_path / "canny.pth", weights_only=True).keys() == weights.keys()  # no dictionary around it


def test_other_architectures_settings_are_kept_beside_their_weights(
    own_tiny: Base, tiny_conf: DictConfig, scatter: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = Full(own_tiny, tiny_conf.hint_channels)
    scatter(model.branch)
    branch = saved_of(model, torch.float32)
    for form, name in FORMATS.values():
        form.write(branch, tmp_path / name, own_tiny.original_weights)
        check_equal(branch, read_saved(tmp_path / name, "trust"))
    torch.manual_seed(2)
    other = Full(own_tiny, tiny_conf.hint_channels)
    Pretrained(str(tmp_path / "canny.pth"))(own_tiny, other.branch)
    assert all(torch.equal(t, other.branch.state_dict()[name]) for name, t in model.branch.state_dict().items())


def test_diffusers_reads_what_is_written(branch: SavedBranch, tmp_path: Path) -> None:
    for name in ("diffusers", "safetensors"):
        FORMATS[name][0].write(branch, tmp_path / FORMATS[name][1], dict)
    folder = ControlNetModel.from_pretrained(tmp_path / "canny")
    file: Any = ControlNetModel.from_single_file(
        str(tmp_path / "canny.safetensors"), config=str(tmp_path / "canny"), local_files_only=True
    )
    for theirs in (folder.state_dict(), file.state_dict()):
        assert theirs.keys() == branch.weights.keys()
        assert all(torch.equal(theirs[n].float().nan_to_num(7), t.float().nan_to_num(7))
                   for n, t in branch.weights.items())  # fmt: skip


def test_files_without_a_prefix_and_with_diffusers_names_are_read_too(branch: SavedBranch, tmp_path: Path) -> None:
    FORMATS["safetensors"][0].write(branch, tmp_path / "canny.safetensors", dict)
    weights = load_file(tmp_path / "canny.safetensors")
    save_file({n.removeprefix("control_model."): t for n, t in weights.items()}, tmp_path / "bare.safetensors")
    save_file({n: t.contiguous() for n, t in branch.weights.items()}, tmp_path / "diffusers.safetensors")
    torch.save({"state_dict": {"state_dict": weights}, "epoch": 3}, tmp_path / "nested.pth")
    for file in ("bare.safetensors", "diffusers.safetensors", "nested.pth"):
        check_equal(branch, read_saved(tmp_path / file, "trust"))


def test_a_pretrained_branch_comes_from_a_folder_or_a_file(model: Full, small: Base, tmp_path: Path) -> None:
    branch = saved_of(model, torch.float16)
    for form, name in (FORMATS["diffusers"], FORMATS["original"]):
        form.write(branch, tmp_path / name, dict)
        torch.manual_seed(2)
        other = Full(copy.deepcopy(small), (16, 32, 96, 256))
        Pretrained(str(tmp_path / name))(small, other.branch)
        assert all(torch.equal(t, other.branch.state_dict()[n]) for n, t in model.branch.state_dict().items())


def test_a_name_that_does_not_suit_the_format_is_refused(own_tiny: Base, tiny_conf: DictConfig, tmp_path: Path) -> None:
    for name, wrong in (("diffusers", "x.pth"), ("original", "x.safetensors"), ("safetensors", "folder")):
        with pytest.raises(InputError, match="give a name"):
            FORMATS[name][0].check(tmp_path / wrong)
        FORMATS[name][0].check(tmp_path / FORMATS[name][1])
    light = Light(own_tiny, tiny_conf.hint_channels, kernel_size=3).branch
    settings = plain_settings(light.config)
    branch = SavedBranch("LightBranch", settings, light.state_dict(), frozenset(settings))
    with pytest.raises(InputError, match="no names for a LightBranch; give format=diffusers"):
        FORMATS["original"][0].write(branch, tmp_path / "x.pth", dict)
    FORMATS["diffusers"][0].write(branch, tmp_path / "light", dict)
    check_equal(branch, read_saved(tmp_path / "light", "trust"))


def test_each_file_that_is_no_controlnet_for_this_base_is_named_in_one_line(
    model: Full, own_tiny: Base, tiny_conf: DictConfig, tmp_path: Path
) -> None:
    branch = saved_of(model, torch.float16)
    FORMATS["safetensors"][0].write(branch, tmp_path / "good.safetensors", dict)
    good = load_file(tmp_path / "good.safetensors")
    x = torch.zeros(2)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-100])
    (tmp_path / "early.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:300])
    torch.save({"state_dict": good, "path": Path("x")}, tmp_path / "more.pth")
    save_file({n: t for n, t in good.items() if ".zero_convs." not in n}, tmp_path / "part.safetensors")
    save_file({"lora_unet_down_blocks_0.lora_down.weight": x}, tmp_path / "kohya.safetensors")
    save_file({"unet.down_blocks.0.attn1.to_q.lora_A.weight": x}, tmp_path / "peft.safetensors")
    save_file({"lora_controlnet": x.clone(), "input_hint_block.0.weight": x}, tmp_path / "control_lora.safetensors")
    save_file({"input_hint_block.0.weight": x.clone(), "label_emb.0.0.weight": x}, tmp_path / "xl.safetensors")
    save_file({"model.diffusion_model.input_blocks.0.0.weight": x}, tmp_path / "base.safetensors")
    save_file({"adapter.body.0.resnets.0.block1.weight": x}, tmp_path / "adapter.safetensors")
    said = {
        "cut.safetensors": "cut off or damaged",
        "early.safetensors": "cut off or damaged",
        "more.pth": "needs more than weights, pathlib",
        "part.safetensors": "zero_convs.0.0.weight' is not in it",
        "kohya.safetensors": "is a LoRA; give a ControlNet",
        "peft.safetensors": "is a LoRA; give a ControlNet",
        "control_lora.safetensors": "is a Control-LoRA",
        "xl.safetensors": "is a ControlNet for SDXL",
        "base.safetensors": "is a whole Stable Diffusion",
        "adapter.safetensors": "is a T2I-Adapter",
        "nowhere.pth": "no such folder or file",
    }
    for name, part in said.items():
        with pytest.raises(InputError) as raised:
            Pretrained(str(tmp_path / name))(model.base, model.branch)
        line = str(raised.value)
        assert part in line and str(tmp_path / name) in line and "\n" not in line and len(line) < 400, line
    assert "init.trust=true" in str(_refusal(tmp_path / "more.pth", model))
    Pretrained(str(tmp_path / "more.pth"), trust=True)(model.base, Full(model.base, (16, 32, 96, 256)).branch)
    here = Full(own_tiny, tiny_conf.hint_channels)
    line = str(_refusal(tmp_path / "good.safetensors", here))
    assert f"cross_attention_dim {branch.settings['cross_attention_dim']} there, 128 here" in line
    assert f"block_out_channels {branch.settings['block_out_channels']} there, [64, 128, 128] here" in line
    assert ("use_linear_projection True there" in line) == branch.settings["use_linear_projection"]


def _refusal(file: Path, model: Full) -> InputError:
    with pytest.raises(InputError) as raised:
        Pretrained(str(file))(model.base, model.branch)
    return raised.value


def test_the_shipped_files_are_what_they_are_called(repository: Path) -> None:
    shipped = {"tiny_canny": "a ControlNet", "tiny/unet": "a UNet", "tiny/vae": "a VAE"}
    for folder, kind in shipped.items():
        file = repository / "pretrained" / folder / "diffusion_pytorch_model.safetensors"
        assert kind_of(read_weights(file, "trust")[0]) == kind


def test_the_one_that_is_averaged_over_the_picture_is_known_by_its_name(branch: SavedBranch, tmp_path: Path) -> None:
    file = tmp_path / "control_v11e_sd15_shuffle.safetensors"
    OriginalFile([".safetensors"]).write(branch, file, dict)
    saved = read_saved(file, "trust")
    assert saved.settings["global_pool_conditions"] and "global_pool_conditions" in saved.told
    DiffusersFolder().write(saved, tmp_path / "shuffle", dict)
    OriginalFile([".pth"]).write(read_saved(tmp_path / "shuffle", "trust"), tmp_path / "other.pth", dict)
    assert read_saved(tmp_path / "other.pth", "trust").settings["global_pool_conditions"]
