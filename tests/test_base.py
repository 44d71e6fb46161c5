"""The shipped base: what is saved is what is loaded, and what cannot be loaded is said in one line."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from omegaconf import DictConfig

from cnx.base import Base
from cnx.data.synthetic import Birds, Fill50K
from cnx.errors import InputError

PARTS = ("vae", "text_encoder", "unet")
PROMPTS = ["a white bird flying in the blue sky", "", "blue circle with yellow background"]


def test_saving_and_loading_are_inverses(tiny: Base, tmp_path: Path) -> None:
    tiny.save(tmp_path / "base")
    loaded = Base.load(str(tmp_path / "base"))
    for part in PARTS:
        there, here = getattr(loaded, part).state_dict(), getattr(tiny, part).state_dict()
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], here[name]) for name in here)
        assert loaded.fingerprint(part) == tiny.fingerprint(part)
    assert dict(loaded.scheduler.config) == dict(tiny.scheduler.config)
    assert torch.equal(loaded.encode_text(PROMPTS), tiny.encode_text(PROMPTS))


def test_saving_leaves_the_base_as_it_was(own_tiny: Base, tmp_path: Path) -> None:
    with torch.no_grad():
        own_tiny.unet.conv_in.weight.fill_(1 / 3)  # no half
    before = copy.deepcopy(own_tiny.state_dict())
    own_tiny.save(tmp_path)
    after = own_tiny.state_dict()
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_nothing_of_a_loaded_base_trains(tiny: Base) -> None:
    assert not any(parameter.requires_grad for parameter in tiny.parameters())
    assert not any(module.training for module in tiny.modules())
    assert tiny.dtype == torch.float32


def test_fingerprint_is_the_same_in_any_precision_and_memory_layout(tiny: Base, own_tiny: Base) -> None:
    wanted = tiny.fingerprint(*PARTS)
    assert own_tiny.to(memory_format=torch.channels_last).fingerprint(*PARTS) == wanted  # type: ignore[call-overload]
    assert own_tiny.half().fingerprint(*PARTS) == wanted


def test_fingerprint_is_the_same_before_and_after_use(own_tiny: Base, tmp_path: Path) -> None:
    own_tiny.tokenizer.backend_tokenizer.no_padding()  # as a tokenizer is that nobody has called yet
    before = own_tiny.fingerprint(*PARTS)
    own_tiny.encode_text(PROMPTS)
    own_tiny.save(tmp_path)
    assert own_tiny.fingerprint(*PARTS) == before


@pytest.mark.parametrize("part", PARTS)
def test_fingerprint_changes_with_any_weight_of_its_part_and_no_other(tiny: Base, own_tiny: Base, part: str) -> None:
    with torch.no_grad():
        weight = next(getattr(own_tiny, part).parameters())
        weight[(0,) * weight.ndim] += 0.5
    changed = {other for other in PARTS if own_tiny.fingerprint(other) != tiny.fingerprint(other)}
    assert changed == {part}
    assert own_tiny.fingerprint(*PARTS) != tiny.fingerprint(*PARTS)


def test_fingerprint_changes_with_settings_and_with_the_tokenizer(tiny: Base, own_tiny: Base) -> None:
    own_tiny.vae.register_to_config(scaling_factor=1.5)
    assert own_tiny.fingerprint("vae") != tiny.fingerprint("vae")
    own_tiny.tokenizer.add_tokens(["heron"])
    assert own_tiny.fingerprint("text_encoder") != tiny.fingerprint("text_encoder")


def test_prompts_are_told_apart_and_do_not_see_each_other(tiny: Base) -> None:
    text = tiny.encode_text(PROMPTS)
    assert text.shape == (3, tiny.tokenizer.model_max_length, tiny.unet.config["cross_attention_dim"])
    assert (text[0] - text[1]).abs().max() > 0.1 and (text[0] - text[2]).abs().max() > 0.1
    for prompt, embedding in zip(PROMPTS, text, strict=True):
        torch.testing.assert_close(tiny.encode_text([prompt])[0], embedding)


def test_a_long_prompt_is_cut(tiny: Base) -> None:
    assert tiny.encode_text(["bird " * 1000]).isfinite().all()


def test_decoding_what_was_encoded_gives_the_picture_back(tiny: Base) -> None:
    pictures = [scenes.draw(index, 128).target for scenes in (Birds(), Fill50K()) for index in range(4)]
    images = torch.stack([torch.from_numpy(picture) for picture in pictures]).permute(0, 3, 1, 2).float() / 255
    latents = tiny.encode_images(images)
    assert 0.5 < latents.std() < 2  # scaled to about unit variance
    decoded = tiny.decode_latents(latents)
    assert decoded.min() >= 0 and decoded.max() <= 1
    psnr = -10 * (decoded - images).square().mean(dim=(1, 2, 3)).log10()
    assert psnr.mean() > 24


def test_plain_diffusers_loads_the_shipped_base_and_draws(tiny: Base, tiny_conf: DictConfig) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_conf.path)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(PROMPTS[0], num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0))[0]
    assert drawn.shape == (1, 3, tiny_conf.resolution, tiny_conf.resolution)
    assert drawn.std() > 0.02  # a picture and no blank
    embedding, null = pipeline.encode_prompt(PROMPTS[0], "cpu", 1, do_classifier_free_guidance=True)
    ours = tiny.encode_text([PROMPTS[0], ""])
    assert torch.equal(embedding[0].float(), ours[0]) and torch.equal(null[0].float(), ours[1])


def no_pipeline(shipped: Path, folder: Path) -> str:
    folder.mkdir()
    (folder / "photo.png").touch()
    return str(folder)


def missing_weights(shipped: Path, folder: Path) -> str:
    shutil.copytree(shipped, folder)
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.unlink()
    return str(folder)


def truncated_weights(shipped: Path, folder: Path) -> str:
    shutil.copytree(shipped, folder)
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:5000])
    return str(folder)


def truncated_index(shipped: Path, folder: Path) -> str:
    folder.mkdir()
    (folder / "model_index.json").write_text((shipped / "model_index.json").read_text()[:40])
    return str(folder)


def missing_folder(shipped: Path, folder: Path) -> str:
    return str(folder)


def hub_id(shipped: Path, folder: Path) -> str:
    return "nobody/no-such-model"


@pytest.mark.parametrize(
    "bad", [no_pipeline, missing_weights, truncated_weights, truncated_index, missing_folder, hub_id]
)
def test_a_bad_path_is_said_in_one_line(bad, tiny_conf: DictConfig, tmp_path: Path) -> None:
    path = bad(Path(tiny_conf.path), tmp_path / "bad")
    with pytest.raises(InputError) as raised:
        Base.load(path)
    assert path in str(raised.value) and "base.path" in str(raised.value)
    assert "\n" not in str(raised.value)
