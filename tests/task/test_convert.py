"""task=convert as it is typed: any format to any, a fresh branch, another base, and what bad input says."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

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


BAD = {
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
    torch.save({"state_dict": {"input_hint_block.0.weight": torch.zeros(2)}, "more": Path("x")}, "more.pth")
    before = set(Path().iterdir())
    overrides, said = BAD[bad]
    with pytest.raises(SystemExit) as raised:
        convert(repository, *overrides)
    line = str(raised.value.code)
    assert line.startswith("cnx: ") and said in line and "\n" not in line
    assert set(Path().iterdir()) == before and not any(Path("taken").iterdir())
