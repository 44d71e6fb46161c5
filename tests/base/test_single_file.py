"""A base in one file: the same base as in a folder, and one line for each file that is none."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cnx.base import Base, clip_tokenizer, original_weights, write_weights
from cnx.errors import InputError

PARTS = ("vae", "text_encoder", "unet")
PROMPTS = [
    "a professional, detailed, high-quality image",
    "",
    "it's 1024 Birds' wheels",
    "Grüße 鳥",
    "a long one " * 60,
]


@pytest.fixture(scope="module")
def weights(small: Base) -> dict[str, Tensor]:
    """The small base by the original's names, in half precision but for its VAE."""
    original = small.original_weights()
    return {n: t if n.startswith("first_stage_model.") or not t.is_floating_point() else t.half()
            for n, t in original.items()}  # fmt: skip


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_one_file_holds_the_base_that_was_written_with_its_dtypes(
    small: Base, weights: dict[str, Tensor], architecture: DictConfig, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"base{suffix}"
    write_weights(weights, file, {})
    as_stored = Base.load(str(file), architecture, dtype=None)
    assert [getattr(as_stored, part).dtype for part in PARTS] == [torch.float32, torch.float16, torch.float16]
    loaded = Base.load(str(file), architecture)
    assert loaded.path == str(file) and loaded.dtype == torch.float32
    assert all(same(tensor, small.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(loaded.encode_text(PROMPTS), small.encode_text(PROMPTS))
    assert dict(loaded.scheduler.config) == dict(small.scheduler.config)
    assert not any(p.requires_grad for p in loaded.parameters()) and not any(m.training for m in loaded.modules())
    there = original_weights(str(file), architecture=architecture)
    assert there.keys() == weights.keys() and all(same(there[name], weights[name]) for name in weights)


def test_diffusers_own_reader_finds_the_same_base(small: Base, weights: dict[str, Tensor], tmp_path: Path) -> None:
    write_weights(weights, tmp_path / "base.safetensors", {})
    small.save(tmp_path / "folder")
    pipeline = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "base.safetensors"), config=str(tmp_path / "folder"), local_files_only=True, safety_checker=None
    )
    for part in PARTS:
        theirs, ours = getattr(pipeline, part).state_dict(), getattr(small, part).state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name].float(), ours[name]) for name in ours), part


def test_a_folder_gives_the_same_file(small: Base, architecture: DictConfig, tmp_path: Path) -> None:
    small.save(tmp_path / "folder")
    there, here = original_weights(str(tmp_path / "folder")), small.original_weights()
    assert there.keys() == here.keys()
    for name, tensor in here.items():
        half = name.startswith(("model.", "first_stage_model.", "cond_stage_model.")) and tensor.is_floating_point()
        assert same(there[name], tensor.half() if half else tensor), name


def test_what_stands_around_the_weights_is_left(
    small: Base, weights: dict[str, Tensor], architecture: DictConfig, tmp_path: Path
) -> None:
    averaged = {f"model_ema.{n.replace('.', '')}": t + 1 for n, t in weights.items() if n.startswith("model.")}
    torch.save({"state_dict": {**weights, **averaged}, "global_step": 840_000, "epoch": 3}, tmp_path / "base.ckpt")
    loaded = Base.load(str(tmp_path / "base.ckpt"), architecture)
    assert loaded.fingerprint(*PARTS) == small.fingerprint(*PARTS)
    assert original_weights(str(tmp_path / "base.ckpt"), architecture=architecture).keys() == weights.keys()


def test_the_noise_schedule_is_what_the_original_keeps(small: Base, weights: dict[str, Tensor]) -> None:
    schedule = {name: tensor for name, tensor in weights.items() if "." not in name}
    assert len(schedule) == 12 and all(tensor.shape == (1000,) for tensor in schedule.values())
    whole = small.original_weights()
    torch.testing.assert_close(whole["alphas_cumprod"], small.scheduler.alphas_cumprod, rtol=1e-5, atol=1e-7)
    variance = [whole["posterior_variance"][t] for t in (1, 500, 999)]
    theirs = [small.scheduler._get_variance(torch.tensor(t), variance_type="fixed_small") for t in (1, 500, 999)]
    torch.testing.assert_close(torch.stack(variance), torch.stack(theirs), rtol=1e-4, atol=1e-8)


def test_the_tokenizer_numbers_tokens_as_openclip_does() -> None:
    wanted = open_clip.tokenize(PROMPTS)
    for pad_token, number in (("!", 0), ("<|endoftext|>", 49407)):
        tokenizer = clip_tokenizer(pad_token)
        ours = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        after_end = (wanted == 49407).cumsum(1).cumsum(1) > 1
        assert torch.equal(ours["input_ids"], wanted.masked_fill(after_end, number))


@pytest.mark.parametrize("version", ["sd21"], indirect=True, scope="session")
def test_the_text_encoder_gives_what_openclip_s_own_tower_gives(
    weights: dict[str, Tensor], architecture: DictConfig, scatter: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    shape = architecture.text_encoder
    width = shape.hidden_size
    text = {"width": width, "heads": shape.num_attention_heads, "layers": shape.num_hidden_layers + 1}
    text["mlp_ratio"] = shape.intermediate_size / width
    picture = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}
    theirs: Any = open_clip.CLIP(width, open_clip.CLIPVisionCfg(**picture), open_clip.CLIPTextCfg(**text))
    scatter(theirs.eval())
    # Stable Diffusion 2 takes the last layer but one, normed (its FrozenOpenCLIPEmbedder).
    with torch.no_grad():
        x = theirs.token_embedding(open_clip.tokenize(PROMPTS)) + theirs.positional_embedding
        for block in theirs.transformer.resblocks[:-1]:
            x = block(x, attn_mask=theirs.attn_mask)
        x = theirs.ln_final(x)
    tower = {f"cond_stage_model.model.{n}": t for n, t in theirs.state_dict().items() if not n.startswith("visual.")}
    write_weights({**weights, **tower}, tmp_path / "base.safetensors", {})
    torch.testing.assert_close(Base.load(str(tmp_path / "base.safetensors"), architecture).encode_text(PROMPTS), x)


class Callbacks:
    """What a training framework leaves in its checkpoints."""


def bad_files(weights: dict[str, Tensor], folder: Path) -> dict[str, tuple[Callable[[Path], Any], str]]:
    def keep(wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in weights.items() if wanted(name)}

    def cut(file: Path) -> None:
        write_weights(weights, file, {})
        file.write_bytes(file.read_bytes()[:-5000])

    vector = {"x": torch.zeros(2)}
    first = "model.diffusion_model.input_blocks.0.0.weight"
    inpainting = {**weights, first: torch.zeros(weights[first].shape[0], 9, 3, 3)}
    return {
        "more.ckpt": (lambda f: torch.save({"state_dict": weights, "callbacks": Callbacks()}, f), "base.trust=true"),
        "cut.safetensors": (cut, "cut off or damaged"),
        "cut.ckpt": (cut, "fetch the file again"),
        "xl.safetensors": (lambda f: write_weights({**weights, "conditioner.embedders.0.x": vector["x"]}, f, {}),
                           "an SDXL base"),
        "lora.safetensors": (lambda f: write_weights({"lora_unet_x.lora_up.weight": vector["x"]}, f, {}), "a LoRA"),
        "vae.ckpt": (lambda f: write_weights(keep(lambda n: n.startswith("first_stage_model")), f, {}), "is a VAE"),
        "control.pth": (lambda f: write_weights({"control_model.input_hint_block.0.bias": vector["x"]}, f, {}),
                        "is a ControlNet"),
        "no_text.ckpt": (lambda f: write_weights(keep(lambda n: not n.startswith("cond_stage_model")), f, {}),
                         "is not in it"),
        "inpainting.ckpt": (lambda f: write_weights(inpainting, f, {}), "whose UNet takes 9 channels"),
        "video.safetensors": (lambda f: write_weights({"model.diffusion_model.blocks.0.x": vector["x"]}, f, {}),
                              "is none of Stable Diffusion 1 or 2"),
        "pointer.safetensors": (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
        "page.ckpt": (lambda f: f.write_text("<!DOCTYPE html><title>404</title>"), "neither safetensors nor a pickle"),
        "list.ckpt": (lambda f: torch.save([1, 2], f), "holds no weights"),
        "empty.safetensors": (lambda f: f.write_bytes(b""), "fetch the file again"),
    }  # fmt: skip


def test_each_file_that_is_no_base_is_named_in_one_line(
    weights: dict[str, Tensor], architecture: DictConfig, tmp_path: Path
) -> None:
    for name, (make, said) in bad_files(weights, tmp_path).items():
        make(tmp_path / name)
        with pytest.raises(InputError) as raised:
            Base.load(str(tmp_path / name), architecture)
        line = str(raised.value)
        assert said in line and str(tmp_path / name) in line and "\n" not in line and len(line) < 500, (name, line)


def rewritten(folder: Path, part: str, file: str, **settings: Any) -> None:
    """Change settings in a part's JSON."""
    path = folder / part / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_folder_that_predicts_something_else_or_inpaints_is_named(small: Base, tmp_path: Path) -> None:
    small.save(tmp_path / "sample")
    rewritten(tmp_path / "sample", "scheduler", "scheduler_config.json", prediction_type="sample")
    with pytest.raises(InputError, match="sample: its scheduler says prediction_type sample"):
        Base.load(str(tmp_path / "sample"))
    other = copy.copy(small)
    other._modules = dict(small._modules)
    settings = {key: value for key, value in small.unet.config.items() if key[0] != "_"} | {"in_channels": 9}
    other.unet = UNet2DConditionModel.from_config(settings)
    other.save(tmp_path / "inpainting")
    with pytest.raises(InputError, match="inpainting: is an inpainting model, whose UNet takes 9 channels"):
        Base.load(str(tmp_path / "inpainting"))


def test_a_folder_s_weights_of_several_dtypes_are_all_held(small: Base, tmp_path: Path) -> None:
    small.save(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    last = sorted(weights)[-1]
    weights[last] = weights[last].float() + 1e-6  # more than half precision holds
    save_file(weights, file, {"format": "pt"})
    text = tmp_path / "text_encoder" / "model.safetensors"
    first = {"embeddings.position_ids": torch.arange(77)[None]}  # as older libraries wrote it: no weight at all
    torch.save({**first, **load_file(text)}, text.with_name("pytorch_model.bin"))
    text.unlink()
    loaded = Base.load(str(tmp_path), dtype=None)
    assert [loaded.unet.dtype, loaded.text_encoder.dtype] == [torch.float32, torch.float16]
    assert torch.equal(loaded.unet.state_dict()[last], weights[last])


def test_a_pickle_that_needs_more_names_what_and_is_read_where_it_is_trusted(
    small: Base, weights: dict[str, Tensor], architecture: DictConfig, tmp_path: Path
) -> None:
    file = str(tmp_path / "more.ckpt")
    torch.save({"state_dict": weights, "callbacks": {"saved": Path("x")}}, file)
    with pytest.raises(InputError, match="needs more than weights, pathlib"):
        Base.load(file, architecture)
    assert Base.load(file, architecture, trust=True).fingerprint("unet") == small.fingerprint("unet")


def test_a_base_of_another_version_is_named_with_its_widths(
    small: Base, weights: dict[str, Tensor], architecture: DictConfig, tiny: Base, tmp_path: Path
) -> None:
    file = str(tmp_path / "tiny.ckpt")
    write_weights(tiny.original_weights(), Path(file), {})
    with pytest.raises(InputError, match=re.escape("block_out_channels [64, 128, 128] there")) as raised:
        Base.load(file, architecture)
    assert f"cross_attention_dim 128 there, {small.unet.config['cross_attention_dim']} here" in str(raised.value)
    with pytest.raises(InputError, match="give base=sd15, sd21 or sd21_768"):
        Base.load(file)


def test_a_file_without_the_older_library_s_prefix_is_read_too(
    small: Base, weights: dict[str, Tensor], architecture: DictConfig, tmp_path: Path
) -> None:
    renamed = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in weights.items()}
    write_weights(renamed, tmp_path / "base.ckpt", {})
    loaded = Base.load(str(tmp_path / "base.ckpt"), architecture)
    assert loaded.fingerprint("text_encoder") == small.fingerprint("text_encoder")
