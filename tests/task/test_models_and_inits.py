"""Every model with every init: composed, trained, saved, loaded, sampled; and real runs of each model."""

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from hydra.utils import instantiate
from lightning import Trainer
from PIL import Image
from safetensors.torch import load_file

from cnx.base import Base
from cnx.data.module import ControlData
from cnx.errors import InputError
from cnx.init import GaussianControl
from cnx.task.train import build, make_training
from small_runs import REPOSITORY, SMALL, PressCtrlC, composed, launch, measured

MODELS = sorted(file.stem for file in (REPOSITORY / "conf" / "model").glob("*.yaml"))
INITS = sorted(file.stem for file in (REPOSITORY / "conf" / "init").glob("*.yaml"))
LIGHT = ("lite", "mlp")
SMALLER = [*SMALL, "data.batch_size=2", "callback.probe.items=1", "callback.probe.every=3", "sampler.steps=1"]
pytestmark = pytest.mark.usefixtures("in_workplace")


@pytest.fixture(scope="session")
def data(workplace: Path, tiny: Base) -> ControlData:
    os.chdir(workplace)
    prepared: ControlData = instantiate(composed(*SMALLER).data)
    prepared.prepare(tiny)
    return prepared


@pytest.fixture(scope="session")
def trained_before(workplace: Path) -> dict[str, Path]:
    """For init.path: a branch of each model."""
    for name in MODELS:
        base, model = build(composed(*SMALLER, f"model={name}", "init=random_control"))
        GaussianControl(std=0.05)(base, model.branch)
        model.save(workplace / "trained" / name)
    return {name: workplace / "trained" / name for name in MODELS}


@pytest.mark.parametrize(("name", "init"), list(product(MODELS, INITS)))
def test_every_model_with_every_init_trains_and_is_saved_loaded_and_sampled(
    name: str, init: str, data: ControlData, trained_before: dict[str, Path], tmp_path: Path
) -> None:
    given = [f"init.path={trained_before[name]}"] if init == "pretrained" else []
    cfg = composed(*SMALLER, f"model={name}", f"init={init}", *given)
    torch.manual_seed(0)
    if name in LIGHT and init == "sd_copy":
        with pytest.raises(InputError, match="init=random_control"):
            build(cfg)
        return
    base, model = build(cfg)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    batch = next(iter(data.train_dataloader()))
    once = dict(x_t=batch.latents, t=torch.tensor([10, 700]), text=batch.text, control=batch.control)
    with torch.no_grad():
        same = torch.equal(model(**once), model(**once, strength=0))
    assert same == (init in ("sd_copy", "scratch", "random_control"))

    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer: Trainer = instantiate(cfg.trainer, max_steps=2, **settings)
    trainer.fit(make_training(cfg, model, data), datamodule=data)
    after = model.state_dict()
    moved = {key for key, tensor in after.items() if not torch.equal(tensor, before[key])}
    assert {key for key in moved if key.startswith("branch.controlnet_mid_block.")}
    assert not {key for key in moved if key.startswith("skips.")}
    of_base = {key.split(".")[2] for key in moved if key.startswith("base.")}
    assert of_base == ({"up_blocks", "conv_norm_out", "conv_out"} if name == "large_scale" else set())

    if base.path is None:
        base.save(tmp_path / "base")  # as a run does when it begins
    model.save(tmp_path)
    assert (tmp_path / "base").is_dir() == (name == "large_scale" or init == "scratch")
    _, loaded = build(cfg, tmp_path)
    loaded.load(tmp_path)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    arguments = (batch.text, data.null_text, batch.control, noise)
    sampler = instantiate(cfg.sampler)
    drawn = sampler(model.eval(), *arguments)
    torch.testing.assert_close(sampler(loaded.eval(), *arguments), drawn)
    assert drawn.isfinite().all() and not torch.equal(drawn, sampler(model, *arguments, 0.0))
    if name not in LIGHT:
        saved = ControlNetModel.from_pretrained(tmp_path / "controlnet")
        assert isinstance(saved, ControlNetModel)
        links = saved(*once.values(), return_dict=False)
        ours = loaded.control(**once)
        for theirs, link in zip((*links[0], links[1]), (*ours.down, ours.mid), strict=True):
            torch.testing.assert_close(theirs, link, rtol=1e-4, atol=1e-4)  # in another memory layout


@pytest.mark.parametrize("name", [name for name in MODELS if name != "full"])
def test_a_run_of_every_model_can_be_sampled_and_by_plain_diffusers_where_it_is_a_controlnet(name: str) -> None:
    init = "random_control" if name in LIGHT else "sd_copy"
    folder = launch(f"model={name}", f"init={init}", "trainer.max_steps=2", *SMALLER)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["model"], summary["init"], summary["optimizer_steps"]) == (name, init, 2)
    control = Path("data/birds-128/source/3.png")
    launch("task=sample", f"run={folder}", f"control={control}", "prompt=a red bird", f"out=ours/{name}", "seed=5",
           "sampler.steps=3")  # fmt: skip
    ours = np.asarray(Image.open(f"ours/{name}/3_seed5.png")).astype(float) / 255
    assert ours.std() > 0.01
    if name in LIGHT:
        return
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        folder / "base" if name == "large_scale" else REPOSITORY / "pretrained" / "tiny",
        controlnet=ControlNetModel.from_pretrained(folder / "controlnet"),
        torch_dtype=torch.float32,
        safety_checker=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        "a red bird",
        image=Image.open(control),
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    )[0][0]  # pyright: ignore[reportIndexIssue, reportArgumentType]
    assert np.abs(ours - drawn).max() < 1.5 / 255


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=large_scale"],
        ["model=small_scale", "phases=[{when: 2, links: all, accumulate_grad_batches: 2}, {when: 4, unlock: decoder}]"],
    ],
    ids=["large_scale", "phases"],
)
def test_resuming_a_trained_base_equals_never_stopping(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*arguments, "trainer.max_steps=6", "cooldown=0", *SMALLER]
    loaded, load = [], ControlData.train_dataloader
    monkeypatch.setattr(
        ControlData, "train_dataloader", lambda data: (loaded.append(data.accumulations), load(data))[1]
    )
    whole = launch(*arguments)
    stopped = launch(*arguments, "+callback.user={_target_: small_runs.PressCtrlC, step: 2}")
    assert not (stopped / "base").exists() and not (stopped / "summary.json").exists()
    monkeypatch.setattr(PressCtrlC, "on_train_batch_start", lambda *_: None)
    assert launch(f"resume={stopped}") == stopped
    for part in ("controlnet", "base/unet", "base/vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(stopped / file), load_file(whole / file)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), part
    assert measured(stopped) == measured(whole)
    if "phases" in arguments[1]:
        assert loaded == [[2]] * 3, "epochs of whole steps"
        assert [begun["step"] for begun in json.loads((stopped / "phases.json").read_text())] == [2, 4]
        assert (whole / "phases.json").read_bytes() == (stopped / "phases.json").read_bytes()
        return
    # A finished run that goes on takes up its trained base, too.
    launch(f"resume={stopped}", "trainer.max_steps=7")
    longer = launch(*[argument.replace("max_steps=6", "max_steps=7") for argument in arguments])
    ours, theirs = (load_file(at / "base/unet/diffusion_pytorch_model.safetensors") for at in (stopped, longer))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_bad_phases_leave_nothing_behind(tmp_path: Path) -> None:
    before = sorted(Path("runs").glob("*/*"))
    for phases, named in (
        ("phases=[{when: converged, links: all}]", r"phases\[0\].when=converged: no callback.probe"),
        ("phases=[{when: 1, link: all}]", r"phases\[0\].link: no such key"),
    ):
        with pytest.raises(SystemExit, match=named):
            launch(phases, "~callback.probe", *[given for given in SMALLER if "probe" not in given])
    assert sorted(Path("runs").glob("*/*")) == before


def test_of_a_base_trained_in_part_the_rest_is_saved_as_it_was(tiny: Base) -> None:
    half = ["memory.half_locked=true", "trainer.precision=bf16-mixed", "trainer.accelerator=cpu"]
    run = launch("model=large_scale", *SMALLER, *half, "~callback.probe", "trainer.max_steps=1")
    saved = load_file(run / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    trained = {"up_blocks", "conv_norm_out", "conv_out"}
    for name, tensor in tiny.unet.state_dict().items():
        if name.split(".")[0] not in trained:
            assert torch.equal(saved[name], tensor), name
    assert any(not torch.equal(saved[n], t) for n, t in tiny.unet.state_dict().items() if n.split(".")[0] in trained)
