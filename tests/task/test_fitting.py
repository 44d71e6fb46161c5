"""A run made to fit: batches, recipes, memory, several processes."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from safetensors.torch import load_file

from cnx.errors import InputError, line_for_user
from cnx.task.fitting import autocast_dtype, count_micro_batches, find_devices, make_optimizer
from small_runs import REPOSITORY, composed, launch

RECIPES = sorted(file.stem for file in (REPOSITORY / "conf" / "trainer").glob("gpu_*.yaml"))
EXPERIMENTS = sorted(file.stem for file in (REPOSITORY / "experiments").glob("*.yaml"))
SMALL = [
    "logger=none",
    "data.limit=40",
    "data.heldout=0.2",
    "trainer.log_every_n_steps=1",
    "callback.probe.items=1",
    "callback.probe.every=3",
    "callback.probe.gain_every=1",
    "callback.probe.budget=null",
    "sampler.steps=1",
]


pytestmark = pytest.mark.usefixtures("in_workplace")


def test_the_accumulation_follows_from_the_batch() -> None:
    def counted(*overrides: str, processes: int = 1) -> int:
        return count_micro_batches(composed(*overrides), processes)

    assert counted() == 1 and counted("trainer.accumulate_grad_batches=30") == 30
    assert counted("batch_size=128", "micro_batch=4") == 32
    assert counted("batch_size=128", "micro_batch=4", processes=8) == 4
    assert counted("batch_size=12", "data.batch_size=4") == 3
    for overrides, processes, named in (
        (("batch_size=100",), 1, "batch_size=100: no whole number of micro-batches of 8 pairs; give micro_batch=5"),
        (("batch_size=12",), 4, "of 8 pairs on each of 4 devices; give micro_batch=3"),
        (("batch_size=3",), 2, "give a multiple of that"),
        (("batch_size=0",), 1, "batch_size=0: must be a whole number of at least 1"),
        (("batch_size=eight",), 1, "batch_size=eight: must be a whole number"),
        (("batch_size=[8]",), 1, "batch_size=[8]: must be a whole number"),
        (("batch_size=8", "micro_batch=0"), 1, "micro_batch=0: must be a whole number"),
        (("trainer.accumulate_grad_batches=0",), 1, "trainer.accumulate_grad_batches=0: must be a whole number"),
        (("batch_size=16", "trainer.accumulate_grad_batches=2"), 1, "the second follows from the first"),
    ):
        with pytest.raises(InputError) as error:
            counted(*overrides, processes=processes)
        assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_makes_every_experiment_s_batch(recipe: str) -> None:
    cfg = composed(f"trainer={recipe}", "base=sd15", "experiment=attempt7_birds")
    assert cfg.data.batch_size * count_micro_batches(cfg, 1) == 8
    assert cfg.trainer.max_steps == 4735 and cfg.optimizer.lr == 1e-5
    assert composed(f"trainer={recipe}", "micro_batch=2", "optimizer=sgd", "optimizer.lr=1").data.batch_size == 2


@pytest.mark.parametrize("recipe", ["auto", *RECIPES])
def test_an_experiment_s_step_is_the_same_by_any_recipe(recipe: str) -> None:
    for experiment in EXPERIMENTS:
        cfg = composed(f"experiment={experiment}", f"trainer={recipe}", "base=sd15")
        pairs = {"accumulate_30x": 240, "cutenet_dogs": 1}.get(experiment, 8)
        assert cfg.data.batch_size * count_micro_batches(cfg, 1) == pairs, experiment


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_s_precision_is_a_gpu_s_whatever_the_cpu_has(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    for here, bfloat16, expected in (
        (False, False, "bf16-mixed"),
        (True, True, "bf16-mixed"),
        (True, False, "16-mixed"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=here: here)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda bfloat16=bfloat16, **_: bfloat16)
        cfg = composed(f"trainer={recipe}")
        assert cfg.trainer.precision == expected and autocast_dtype(cfg)
        assert composed(f"trainer={recipe}", "trainer.accelerator=cpu").trainer.precision == "bf16-mixed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_recipe_without_its_device_ends_in_a_line() -> None:
    for recipe in RECIPES[:1]:
        with pytest.raises(
            InputError, match="trainer.accelerator=gpu.*trainer.accelerator=cpu tries a recipe"
        ) as error:
            find_devices(composed(f"trainer={recipe}"))
        assert "\n" not in str(error.value)
    assert find_devices(composed("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")) == (
        2,
        torch.device("cpu"),
    )


def test_what_cannot_be_together_is_said_in_a_line() -> None:
    before = sorted(Path("runs").glob("*/*"))
    for overrides, named in (
        (
            ["memory.half_locked=true", "trainer.precision=32-true"],
            "memory.half_locked=true, trainer.precision=32-true",
        ),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true: .* use 32-true"),
        (["optimizer._target_=nowhere.Adam"], "pip install nowhere"),
        (["optimizer=zero"], "optimizer=zero: its state is divided among the processes of trainer=ddp"),
        (["objective=min_snr", "objective.gamma=-1"], "objective.gamma=-1: must be above 0"),
        (["warmup_steps=-1"], "warmup_steps=-1"),
        (["batch_size=9"], "batch_size=9"),
    ):
        with pytest.raises(SystemExit, match=named):
            launch(*overrides, "trainer.max_steps=1", *SMALL)
    assert sorted(Path("runs").glob("*/*")) == before


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd", "adam8bit"])
def test_every_optimizer_takes_the_model_s_groups_and_steps(name: str) -> None:
    if name == "adam8bit":
        pytest.importorskip("bitsandbytes")
    cfg = composed(f"optimizer={name}", *(["optimizer.lr=0.1"] if name == "sgd" else []))
    first, second = torch.nn.Parameter(torch.ones(80, 80)), torch.nn.Parameter(torch.ones(80, 80))
    optimizer = make_optimizer(cfg)([{"params": [first]}, {"params": [second], "lr": 0.0}])
    (first.square().sum() + second.square().sum()).backward()
    optimizer.step()
    assert (first < 1).all()


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["optimizer=sgd"], "optimizer.lr must be given: optimizer.lr=..."),
        (
            ["optimizer._target_=torch.optim.NAdam"],
            "optimizer.fused=True: torch.optim.NAdam takes no such key; ~optimizer.fused leaves it out",
        ),
        (
            ["+optimizer.betta=3"],
            "optimizer.betta=3: torch.optim.AdamW takes no such key; ~optimizer.betta leaves it out",
        ),
        (["optimizer=zero", "trainer=ddp", "+optimizer.betta=3"], "optimizer.betta=3: "),
        (["optimizer._target_=torch.optim.Foo"], "optimizer._target_=torch.optim.Foo: there is no such optimizer; "),
        (["optimizer.lr=-1"], "optimizer: torch.optim.AdamW refuses its keys (Invalid learning rate: -1); "),
    ],
)
def test_an_optimizer_is_not_made_by_keys_that_it_does_not_take(overrides: list[str], line: str) -> None:
    with pytest.raises((InputError, MissingMandatoryValue)) as error:
        make_optimizer(composed(*overrides))
    said = line_for_user(error.value)
    assert said is not None and said.startswith(line) and "\n" not in said


def test_any_optimizer_of_torch_is_one_with_the_keys_that_it_takes() -> None:
    cfg = composed("optimizer._target_=torch.optim.NAdam", "~optimizer.fused", "+optimizer.momentum_decay=0.01")
    optimizer = make_optimizer(cfg)([torch.nn.Parameter(torch.ones(2))])
    assert isinstance(optimizer, torch.optim.NAdam) and optimizer.defaults["momentum_decay"] == 0.01
    zero = make_optimizer(composed("optimizer=zero", "trainer=ddp", "+optimizer.parameters_as_bucket_view=true"))
    assert zero.keywords["optimizer_class"] is torch.optim.AdamW


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_what_is_locked_is_in_the_half_precision_that_the_trainer_computes_in(precision: str) -> None:
    """On a CPU that is bfloat16 in any case: Lightning has no float16 there."""
    folder = launch(
        "trainer=gpu_16gb", "trainer.accelerator=cpu", "trainer.benchmark=null", f"trainer.precision={precision}",
        "batch_size=2", "micro_batch=2", "trainer.max_steps=1", "~callback.probe", *SMALL[:4],
    )  # fmt: skip
    assert json.loads((folder / "summary.json").read_text())["optimizer_steps"] == 1


def test_a_step_is_of_the_batch_that_was_asked_for_also_where_the_data_is_less() -> None:
    folder = launch("batch_size=48", "micro_batch=8", "trainer.max_steps=2", "~callback.probe", *SMALL[:4])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["train_items"] < 48
    assert (summary["optimizer_steps"], summary["micro_batches"], summary["samples_seen"]) == (2, 12, 96)


def test_a_run_by_a_recipe_on_the_tiny_base_equals_its_other_half(capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest recipe, by halves: 2 × 2 pairs, everything away, averaged and warmed up; stopped and gone on."""
    arguments = [
        "trainer=gpu_8gb", "trainer.accelerator=cpu", "optimizer=adamw",
        "trainer.benchmark=null", "batch_size=4", "micro_batch=2", "average=ema", "schedule=constant",
        "warmup_steps=2", "objective=min_snr", "noise_offset=0.1", "trainer.gradient_clip_val=1.0", *SMALL,
    ]  # fmt: skip
    whole = launch(*arguments, "trainer.max_steps=4")
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["optimizer_steps"], summary["micro_batches"], summary["samples_seen"]) == (4, 8, 16)
    parts = launch(*arguments, "trainer.max_steps=2")
    launch(f"resume={parts}", "trainer.max_steps=4")
    file = "controlnet/diffusion_pytorch_model.safetensors"
    assert (whole / file).read_bytes() == (parts / file).read_bytes()
    stored = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=False)
    assert not [name for name in stored["state_dict"] if "vae" in name or "text_encoder" in name]
    average = next(state["average"] for key, state in stored["callbacks"].items() if key.startswith("EMA"))
    saved = load_file(whole / file)
    assert all(torch.equal(saved[name], average[f"model.branch.{name}"]) for name in saved)
    assert {tensor.dtype for tensor in average.values()} == {torch.float32}


def test_a_run_of_before_these_keys_goes_on() -> None:
    arguments = ["schedule=constant", *SMALL]
    whole, parts = launch(*arguments, "trainer.max_steps=3"), launch(*arguments, "trainer.max_steps=2")
    cfg: Any = OmegaConf.load(parts / "config.yaml")
    for key in ("noise_offset", "batch_size", "micro_batch", "warmup_steps", "decay", "memory", "compile"):
        del cfg[key]
    OmegaConf.save(cfg, parts / "config.yaml")
    launch(f"resume={parts}", "trainer.max_steps=3")
    file = "controlnet/diffusion_pytorch_model.safetensors"
    assert (whole / file).read_bytes() == (parts / file).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="starts its processes by fork")
def test_two_processes_learn_what_one_does_with_twice_the_batch(tmp_path: Path) -> None:
    script = REPOSITORY / "tests" / "task" / "in_processes.py"
    places = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    for processes in ("1", "2"):
        command = [sys.executable, script, processes, tmp_path / f"{processes}.pt"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    assert any(not torch.equal(one["start"][name], one["end"][name]) for name in one["end"])
    for name, tensor in one["end"].items():
        torch.testing.assert_close(two["end"][name], tensor, rtol=1e-5, atol=1e-6)
    assert two["logged"] == pytest.approx(one["logged"], rel=1e-5), "the mean of all processes"
    assert len(one["left"]) == 2
    torch.testing.assert_close(two["left"], one["left"], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo on Windows divides no weights")
def test_two_processes_with_divided_weights_make_the_run_of_one(tmp_path: Path) -> None:
    """Half of the weights in each; probes, checkpoint and what is saved are those of a run with twice the batch."""
    settings = ["trainer.max_steps=2", "trainer.precision=32-true", "optimizer.eps=1e-4", *SMALL]
    settings += ["model=large_scale", "model.unlock=decoder", "memory.offload=true"]
    one = launch(*settings, "micro_batch=4")
    command = [sys.executable, str(REPOSITORY / "run.py"), *settings, "micro_batch=2"]
    two_processes = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", f"runs={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *two_processes], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [two] = (tmp_path / "default").iterdir()

    for file in ("controlnet/diffusion_pytorch_model.safetensors", "base/unet/diffusion_pytorch_model.safetensors"):
        ours, theirs = load_file(two / file), load_file(one / file)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    for key in ("optimizer_steps", "micro_batches", "samples_seen"):
        assert summaries[0][key] == summaries[1][key]
    gains = [summary["control_gain"] for summary in summaries]
    assert gains[1] == pytest.approx(gains[0], abs=1e-5) and gains[0] != 0
    stored = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False) for folder in (one, two)]
    assert stored[0]["parameter_groups"] == stored[1]["parameter_groups"]
    assert {n: t.shape for n, t in stored[0]["state_dict"].items()} == {
        n: t.shape for n, t in stored[1]["state_dict"].items()
    }


@pytest.mark.parametrize(
    "asked, named",
    [
        ("average=ema", "trainer=fsdp, average=ema: .*trainer=ddp"),
        ("phases=[{when: 1, links: mid}]", "trainer=fsdp, phases: .*trainer=ddp"),
        ("optimizer=sgd", "trainer=fsdp, optimizer._target_=torch.optim.SGD: .*optimizer=adamw"),
    ],
)
def test_what_divided_weights_cannot_have_is_said_at_once(asked: str, named: str) -> None:
    before = sorted(Path("runs").glob("*/*"))
    with pytest.raises(SystemExit, match=named):
        launch("trainer=fsdp", "trainer.accelerator=cpu", asked, *SMALL)
    assert sorted(Path("runs").glob("*/*")) == before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to tell another C library")
def test_memory_that_was_freed_is_used_again_without_the_kernel() -> None:
    # In a process of its own, which is as large as it is: the number of its pages that the kernel had to clear.
    program = """
import resource, torch
from cnx.task.fitting import keep_freed_memory
keep_freed_memory()
def fill():
    for _ in range(3):
        torch.ones(2**24), torch.ones(2**23)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(result.stdout) < 2**12, result.stderr  # one such tensor alone has 2**13 or 2**14 pages
