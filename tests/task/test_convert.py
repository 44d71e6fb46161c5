"""task=convert as it is typed: any format to any, a fresh branch, another base, and what bad input says."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import run
from cnx.base import Base, read_weights, write_weights
from cnx.model import SavedBranch, read_saved
from cnx.task.convert import carried

CANNY = "pretrained/tiny_canny"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def convert(repository: Path, *overrides: str) -> None:
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=["task=convert", *overrides])
    run.execute(cfg)


def weights(place: str) -> dict[str, torch.Tensor]:
    return read_saved(Path(place), "trust").weights


def test_there_and_back_gives_the_same_bytes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = load_file(repository / CANNY / "diffusion_pytorch_model.safetensors")
    chain = [
        ("canny.pth", "original"),
        ("canny.safetensors", "safetensors"),
        ("whole.ckpt", "original_with_base"),
        ("canny", "diffusers"),
    ]
    source = CANNY
    for to, form in chain:
        convert(repository, f"from={source}", f"to={to}", f"format={form}")
        found = weights(to)
        assert found.keys() == shipped.keys()
        assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in shipped.items())
        source = to
        assert f"Wrote {to}: a ControlNetModel" in capsys.readouterr().out
    assert (Path("canny") / "config.json").is_file()


def test_a_fresh_branch_is_attached_to_a_base_in_one_file(repository: Path, tiny: Base) -> None:
    convert(repository, "init=sd_copy", "to=ini.ckpt", "format=original_with_base")
    written, _ = read_weights(Path("ini.ckpt"), "trust")
    branch = {name: tensor for name, tensor in written.items() if name.startswith("control_model.")}
    for name, tensor in branch.items():
        of_base = written.get(name.replace("control_model.", "model.diffusion_model."))
        if of_base is not None:
            assert torch.equal(tensor, of_base.float()), name  # a copy
        elif ".zero_convs." in name or "middle_block_out" in name:
            assert not tensor.any(), name
    base = tiny.original_weights()
    assert written.keys() == branch.keys() | base.keys()
    assert all(torch.equal(written[name].float(), base[name].float()) for name in base)


def test_a_branch_is_carried_to_another_base_by_their_difference(repository: Path, tiny: Base, own_tiny: Base) -> None:
    with torch.no_grad():
        for parameter in own_tiny.unet.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    own_tiny.save(Path("other"), dtype=torch.float32)
    convert(
        repository, f"from={CANNY}", f"transfer_from={CANNY.replace('_canny', '')}", "base.path=other", "to=carried"
    )
    before, after = weights(str(repository / CANNY)), weights("carried")
    old, new = tiny.unet.state_dict(), own_tiny.unet.state_dict()
    for name, tensor in before.items():
        wanted = tensor.float() + new[name] - old[name] if name in new else tensor
        assert after[name].dtype == tensor.dtype
        torch.testing.assert_close(after[name], wanted.to(tensor.dtype), rtol=0, atol=0)
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    there = SavedBranch("ControlNetModel", {}, {n: t.float() for n, t in before.items()}, frozenset())
    back = carried(carried(there, old, new), new, old)  # another base and back again
    assert all(torch.allclose(back.weights[n], t, atol=1e-6) for n, t in there.weights.items())


def test_nothing_beside_what_is_written_is_touched(repository: Path) -> None:
    for neighbour in ("canny.old", "canny.part", "canny.pth.part"):
        Path(neighbour).mkdir()
        (Path(neighbour) / "notes").write_text("precious")
    convert(repository, f"from={CANNY}", "to=canny.pth", "format=original")
    convert(repository, "from=canny.pth", "to=canny")
    assert len(list(Path().glob("*/notes"))) == 3
    assert {path.name for path in Path().iterdir()} == {
        "canny",
        "canny.pth",
        "canny.old",
        "canny.part",
        "canny.pth.part",
    }


def run_of(repository: Path, base: Base, folder: Path) -> None:
    """What a run leaves that trained its base: the configuration, the branch and the base."""
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=["base.path=nowhere"])
    shutil.copytree(repository / CANNY, folder / "controlnet")
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    base.save(folder / "base", dtype=torch.float32)


def test_a_run_goes_into_one_file_with_the_base_that_it_trained(repository: Path, own_tiny: Base) -> None:
    with torch.no_grad():
        own_tiny.unet.conv_out.weight.add_(0.1)
    run_of(repository, own_tiny, Path("run"))
    convert(repository, "from=run", "to=run.ckpt", "format=original_with_base")
    written, _ = read_weights(Path("run.ckpt"), "trust")
    assert torch.equal(written["model.diffusion_model.out.2.weight"], own_tiny.unet.conv_out.weight)


def test_a_base_that_the_init_drew_is_the_one_that_is_written(repository: Path, tiny: Base) -> None:
    convert(repository, "init=scratch", "to=ini.ckpt", "format=original_with_base")
    written, _ = read_weights(Path("ini.ckpt"), "trust")
    first = written["model.diffusion_model.input_blocks.0.0.weight"]
    assert first.shape == tiny.unet.conv_in.weight.shape and not torch.equal(first.float(), tiny.unet.conv_in.weight)


def test_one_memory_under_several_names_becomes_a_folder_too(repository: Path) -> None:
    stored = weights(str(repository / CANNY))
    convert(repository, f"from={CANNY}", "to=canny.pth", "format=original")
    shared, _ = read_weights(Path("canny.pth"), "trust")
    names = [name for name in shared if name.startswith("control_model.zero_convs.") and name.endswith("bias")]
    for name in names[1:]:
        if shared[name].shape == shared[names[0]].shape:
            shared[name] = shared[names[0]]
    torch.save(shared, "shared.pth")
    convert(repository, "from=shared.pth", "to=shared")
    assert weights("shared").keys() == stored.keys()


WHOLE = "diffusion_pytorch_model.safetensors"


def broken(repository: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """The ControlNet that ships, with other weights; in a folder, and in a file of diffusers' names."""
    shutil.copytree(repository / CANNY, folder)
    stored = load_file(folder / WHOLE)
    change(stored)
    save_file(stored, folder / WHOLE, {"format": "pt"})
    save_file(stored, f"{folder}.safetensors", {"format": "pt"})


NOT_WHOLE = {
    "missing": lambda w: w.pop("mid_block.resnets.0.conv1.weight"),
    "shape": lambda w: w.update({"mid_block.resnets.0.conv1.bias": torch.zeros(7)}),
    "more": lambda w: w.update({"mid_block.more": torch.zeros(7)}),
    "hint": lambda w: [w.pop(name) for name in list(w) if not name.startswith("controlnet_cond_embedding.conv_in")],
}


@pytest.mark.parametrize("kind", NOT_WHOLE)
@pytest.mark.parametrize("form", ["diffusers", "safetensors"])
def test_what_is_not_whole_is_never_written(repository: Path, kind: str, form: str) -> None:
    broken(repository, Path("broken"), NOT_WHOLE[kind])
    before = set(Path().iterdir())
    for source in ("broken", "broken.safetensors"):
        with pytest.raises(SystemExit, match=f"cnx: {source}: ") as raised:
            convert(
                repository, f"from={source}", "to=x" if form == "diffusers" else "to=x.safetensors", f"format={form}"
            )
        assert "\n" not in str(raised.value.code)
    assert set(Path().iterdir()) == before


def test_a_branch_is_put_beside_no_base_of_other_widths(repository: Path, tiny: Base) -> None:
    settings = dict(tiny.unet.config) | {"cross_attention_dim": 96}
    other = copy.copy(tiny)
    other._modules = dict(tiny._modules)
    other.unet = UNet2DConditionModel.from_config(settings)
    other.save(Path("other"))
    named = "not for this base: cross_attention_dim 128, the base's 96"
    with pytest.raises(SystemExit, match=named):
        convert(repository, f"from={CANNY}", "to=x.ckpt", "format=original_with_base", "base.path=other")
    assert not Path("x.ckpt").exists()


BAD = {
    "unet": (["from=pretrained/tiny/unet", "to=x"], "holds a UNet2DConditionModel; give a ControlNet"),
    "unet_to_file": (["from=pretrained/tiny/unet", "to=x.pth", "format=original"], "holds a UNet2DConditionModel"),
    "below_a_file": ([f"from={CANNY}", "to=lora.safetensors/x"], "cannot be written"),
    "file_below": ([f"from={CANNY}", "to=lora.safetensors/x.pth", "format=original"], "cannot be written"),
    "transfer": ([f"from={CANNY}", "transfer_from=nowhere.ckpt", "to=x"], "transfer_from=nowhere.ckpt: no such"),
    "garbled": (["from=garbled.safetensors", "to=x"], "is not whole"),
    "taken": ([f"from={CANNY}", "to=taken"], "to=taken: is there already"),
    "nothing": (["from=nowhere.pth", "to=x"], "from=nowhere.pth: no such folder or file"),
    "suffix": ([f"from={CANNY}", "to=x.pth"], "format=diffusers writes a folder"),
    "no_file": ([f"from={CANNY}", "to=x", "format=safetensors"], "give a name that ends in .safetensors"),
    "to": ([f"from={CANNY}"], "to must be given: to=..."),
    "lora": (["from=lora.safetensors", "to=x"], "is a LoRA; give a ControlNet"),
    "more": (["from=more.pth", "to=x"], "trust=true"),
    "fresh": (["transfer_from=pretrained/tiny", "to=x"], "give it as from=<ControlNet>"),
    "token": (["base.token=NOT_SET", "to=x"], "base.token=NOT_SET"),
    "one_file": (["base.path=more.pth", "to=x"], "give base=sd15, sd21 or sd21_768"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_ends_in_one_line_and_leaves_nothing(repository: Path, bad: str) -> None:
    Path("taken").mkdir()
    write_weights({"lora_unet_x.lora_up.weight": torch.zeros(2)}, Path("lora.safetensors"), {})
    tiny_canny, _ = read_weights(repository / CANNY / WHOLE, "trust")
    save_file(tiny_canny, "garbled.safetensors", {"cnx_settings": "{not JSON"})
    torch.save({"state_dict": {"input_hint_block.0.weight": torch.zeros(2)}, "more": Path("x")}, "more.pth")
    before = set(Path().iterdir())
    overrides, said = BAD[bad]
    with pytest.raises(SystemExit) as raised:
        convert(repository, *overrides)
    line = str(raised.value.code)
    assert line.startswith("cnx: ") and said in line and "\n" not in line
    assert set(Path().iterdir()) == before and not any(Path("taken").iterdir())
