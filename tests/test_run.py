"""Real runs: every experiment for two steps, stopping and going on, sampling, and what bad input says."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from cnx.callback.table import CLOCKS
from cnx.callback.wandb import SECTIONS
from cnx.condition.scene_net import SceneNet
from cnx.data.synthetic import Birds
from small_runs import REPOSITORY, SMALL, PressCtrlC, launch, measured, rows

EXPERIMENTS = sorted(file.stem for file in (REPOSITORY / "experiments").glob("*.yaml"))
PRETRAIN = [
    "logger=none",
    "pictures_per_set=16",
    "heldout=0.2",
    "vae_training.max_steps=2",
    "vae_training.batch_size=2",
    "unet_training.max_steps=2",
    "unet_training.batch_size=2",
    "card_prompts=[a bird]",
]
DETECTOR = [
    "logger=none",
    "pictures_per_set=24",
    "heldout=0.4",
    "heldout_items=4",
    "training.max_steps=2",
    "training.batch_size=2",
    "sheet_rows=1",
]


pytestmark = pytest.mark.usefixtures("in_workplace")


def cli(*overrides: str) -> subprocess.CompletedProcess[str]:
    """`python run.py <overrides>` as a user types it."""
    command = [sys.executable, str(REPOSITORY / "run.py"), *overrides]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "controlnet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_for_two_steps(experiment: str) -> None:
    if experiment == "pretrain_tiny":
        folder = launch(f"experiment={experiment}", *PRETRAIN)
        assert (folder / "base" / "model_index.json").is_file()
        assert "sha256" in (folder / "base" / "README.md").read_text()
        assert Image.open(folder / "base" / "samples.png").size[0] > 256
        return
    if experiment == "detector_tiny":
        folder = launch(f"experiment={experiment}", *DETECTOR) / "detector"
        assert SceneNet.load(folder).detect(np.zeros((64, 64, 3), np.uint8)).nearness.shape == (64, 64)
        card = (folder / "README.md").read_text()
        assert all(f"birds, 4 held-out reconstructions: {what}" in card for what in ("depth", "normal", "pose"))
        assert "fill50k, 4 held-out pictures: segmentation" in card and "fill50k, 4 held-out pictures: pose" not in card
        return
    steps = 0 if experiment in ("attempt3_pretrained", "attempt6_untrained", "attempt6_gaussian") else 2
    overrides = ["trainer.max_steps=2"] if steps else []
    if experiment.startswith("ablation_") or experiment == "prompt_dropout":
        overrides.append("callback.prompts.items=2")
    if experiment == "cutenet_dogs":
        overrides.append("batch_size=4")  # SMALL's micro-batch; its own is one pair
    folder = launch(f"experiment={experiment}", *overrides, *SMALL)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["experiment"] == experiment
    assert summary["optimizer_steps"] == steps <= summary["micro_batches"]
    if summary["micro_batches"] == steps:  # else an epoch has ended, with a smaller batch
        assert summary["samples_seen"] == 4 * steps
    assert (folder / "samples" / f"step_00000{steps}.png").is_file()
    assert (folder / "samples_over_time.png").is_file()


@pytest.mark.parametrize("condition", ["depth", "normal", "segmentation", "pose"])
def test_a_run_under_true_maps_is_scored_by_their_own_measure(condition: str) -> None:
    folder = launch(f"condition={condition}", "trainer.max_steps=2", *SMALL)
    fidelity = json.loads((folder / "summary.json").read_text())["control_fidelity"]
    assert fidelity["ceiling"] > fidelity["floor"] and fidelity["published_ceiling"] != fidelity["ceiling"]
    with np.load(folder / "samples" / "heldout.npz") as heldout:
        maps, pictures, index = heldout["control"], heldout["target"], heldout["index"]
    scenes = Birds(condition=instantiate(OmegaConf.load(folder / "config.yaml").condition))
    for control, target, at in zip(maps, pictures, index, strict=True):
        pair = scenes.draw(int(at), 128)
        assert np.array_equal(control, pair.source) and np.array_equal(target, pair.target)


def test_a_run_folder_holds_what_a_person_and_a_program_look_for() -> None:
    folder = launch("trainer.max_steps=2", "trainer.accumulate_grad_batches=2", *SMALL)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["base"], summary["model"], summary["init"], summary["data"], summary["condition"]) == (
        "tiny", "full", "sd_copy", "birds", "canny",
    )  # fmt: skip
    assert summary["optimizer_steps"] == 2 and summary["micro_batches"] == 4 and summary["samples_seen"] == 16
    assert summary["images_per_second"] > 0 and summary["peak_memory_bytes"] > 0 and summary["final_loss"] > 0
    for row in rows(folder):  # three clocks on every row, and they agree
        assert int(row["micro_batch"]) == 2 * int(row["optimizer_step"])
        assert int(row["samples_seen"]) == 4 * int(row["micro_batch"])
    assert ControlNetModel.from_pretrained(folder / "controlnet").config["cross_attention_dim"] == 128
    assert "It did not converge" in (folder / "report.html").read_text()


def test_task_compare_puts_runs_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = launch("trainer.max_steps=1", *SMALL), launch("trainer.max_steps=1", "init=gaussian_control", *SMALL)
    launch("task=compare", f"compare=[{b},{a}]", "out=compared")
    with Path("compared/comparison.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[:2] == ["init", "control_fidelity"]
    assert [row["init"] for row in table] == ["gaussian_control", "sd_copy"]
    assert all(Path(f"compared/{name}").is_file() for name in ("report.html", "fidelity.png", "wall.png"))
    assert "gaussian_control" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    arguments = ["trainer.max_steps=2", *SMALL]
    first, again = launch(*arguments), launch(*arguments, "callback.probe.every=1")  # probes leave no trace
    other = launch(*arguments, "seed=1")
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(again).values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(other).values(), strict=True))


@pytest.mark.parametrize(("cooldown", "last"), [(0, 1.0), (0.5, 0.5)])  # the rest in tests/test_schedule.py
def test_the_learning_rate_falls_over_the_cooldown(cooldown: float, last: float) -> None:
    folder = launch("trainer.max_steps=4", f"cooldown={cooldown}", "optimizer.lr=1e-3", *SMALL)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(last * 1e-3)  # of the fourth step, where a quarter of the run is left


@pytest.mark.parametrize("init", ["sd_copy", "scratch"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_resuming_equals_never_stopping(
    init: str, accumulate: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"init={init}", "trainer.max_steps=12", f"trainer.accumulate_grad_batches={accumulate}", *SMALL]
    arguments += ["callback.probe.every=6"]
    whole = launch(*arguments)
    stopped = launch(*arguments, "+callback.user={_target_: small_runs.PressCtrlC, step: 9}")
    assert f"python run.py resume={stopped.relative_to(Path())}" in capsys.readouterr().out
    assert not (stopped / "summary.json").exists()
    monkeypatch.setattr(PressCtrlC, "on_train_batch_start", lambda *_: None)
    assert launch(f"resume={stopped}") == stopped
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(stopped).values(), strict=True))
    assert measured(stopped) == measured(whole)


def test_a_finished_run_goes_on_to_more_steps_as_if_it_had_been_asked_for_them_first() -> None:
    whole = launch("trainer.max_steps=12", "cooldown=0", *SMALL)
    shorter = launch("trainer.max_steps=5", "cooldown=0", *SMALL)
    with pytest.raises(SystemExit, match="finished at step 5"):
        launch(f"resume={shorter}")
    with pytest.raises(SystemExit, match="optimizer.lr=1: a resumed run keeps its own"):
        launch(f"resume={shorter}", "optimizer.lr=1")
    launch(f"resume={shorter}", "trainer.max_steps=12")
    assert OmegaConf.load(shorter / "config.yaml")["trainer"]["max_steps"] == 12
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(shorter).values(), strict=True))


def test_a_run_that_ended_by_epochs_is_finished_and_goes_on_to_more() -> None:
    epochs = ["trainer.max_steps=-1", "cooldown=0", "~callback.probe"]
    whole = launch(*SMALL, *epochs, "trainer.max_epochs=3")
    asked = launch(*SMALL, *epochs, "trainer.max_epochs=2")
    before = (asked / "summary.json").read_bytes()
    with pytest.raises(SystemExit, match="the run is finished after 2 epochs; to go on, give trainer.max_epochs="):
        launch(f"resume={asked}")
    assert (asked / "summary.json").read_bytes() == before
    launch(f"resume={asked}", "trainer.max_epochs=3")
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(asked)[name]), name


@pytest.mark.parametrize(
    "ended_by",
    [
        ["trainer.max_steps=2", "callback=[default,four_prompts]", "callback.prompts.items=2"],
        [
            "trainer.max_steps=-1",
            "trainer.max_epochs=1",
            "data.batch_size=16",
            "average=ema",
            "trainer.log_every_n_steps=2",
        ],
        ["trainer.max_steps=9", "phases=[{when: 1, lr: 1e-4, stop_after: 1}]"],
        ["trainer.max_steps=9", "stop=hopeless", "callback.hopeless.after=2"],
    ],
    ids=["steps", "epochs", "phase", "verdict"],
)
def test_a_run_killed_after_its_last_step_is_finished_by_resuming_it(
    ended_by: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise MemoryError("killed")

    arguments = [*SMALL, *ended_by]
    whole = launch(*arguments)
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr("cnx.callback.prompt_ablation.save_prompt_ablation", die)
        patched.setattr("cnx.task.train.write_json", die)
        launch(*arguments)
    killed = max(Path("runs").glob("*/*"), key=lambda folder: folder.stat().st_mtime_ns)
    assert killed != whole and not (killed / "summary.json").exists()
    assert launch(f"resume={killed}") == killed
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(killed)[name]), name
    assert measured(killed) == measured(whole)
    timed = {"wall_seconds", "images_per_second", "peak_memory_bytes", "probe_share"}
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (killed, whole))
    assert ours.pop("final_loss") == pytest.approx(theirs.pop("final_loss"), rel=1e-7), "to a cell's eight digits"
    assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in theirs.items() if k not in timed}
    assert 0 < ours["probe_share"] < 1
    assert ours["images_per_second"] is None, "nothing was trained when it was summed up"
    with pytest.raises(SystemExit, match="the run is finished|has ended the run"):
        launch(f"resume={killed}", *(["trainer.max_steps=2"] if "stop=hopeless" in ended_by else []))


def test_a_stopped_run_is_not_concluded_by_asking_for_fewer_steps_than_it_has_made() -> None:
    stopped = launch("trainer.max_steps=5", "+callback.user={_target_: small_runs.PressCtrlC, step: 2}", *SMALL)
    with pytest.raises(SystemExit, match="the run is finished at step 3; to go on, give trainer.max_steps=<more>"):
        launch(f"resume={stopped}", "trainer.max_steps=3")
    assert not (stopped / "summary.json").exists()


def test_weights_that_are_no_numbers_are_no_result_however_often_the_run_is_resumed() -> None:
    with pytest.raises(SystemExit, match="the weights are no numbers at step 3; lower optimizer.lr"):
        launch("trainer.max_steps=3", "optimizer.lr=1e30", *SMALL)
    lost = max(Path("runs").glob("*/*"), key=lambda folder: folder.stat().st_mtime_ns)
    with pytest.raises(SystemExit, match="the weights are no numbers at step 3; lower optimizer.lr"):
        launch(f"resume={lost}")
    assert not (lost / "summary.json").exists() and not (lost / "controlnet").exists()


@pytest.mark.parametrize("init", ["gaussian_control", "scratch"])
def test_task_sample_draws_what_plain_diffusers_draws(init: str) -> None:
    folder = launch(f"init={init}", "trainer.max_steps=1", *SMALL)
    control = Path("data/birds-128/source/3.png")
    launch("task=sample", f"run={folder}", f"control={control}", "prompt='a red bird, flying'", f"out=ours/{init}",
           "seed=5", "sampler.steps=4")  # fmt: skip

    base = folder / "base" if init == "scratch" else REPOSITORY / "pretrained" / "tiny"
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        base,
        controlnet=ControlNetModel.from_pretrained(folder / "controlnet"),
        torch_dtype=torch.float32,
        safety_checker=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        "a red bird, flying",
        image=Image.open(control),
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    )[0][0]  # pyright: ignore[reportIndexIssue, reportArgumentType]
    ours = np.asarray(Image.open(f"ours/{init}/3_seed5.png")).astype(float) / 255
    assert np.abs(ours - drawn).max() < 1.5 / 255


def test_task_evaluate_finds_what_the_last_probe_found() -> None:
    folder = launch("trainer.max_steps=1", *SMALL)
    probed = json.loads((folder / "summary.json").read_text())["control_fidelity"]
    launch("task=evaluate", f"run={folder}", "num_items=2")
    evaluated = json.loads((folder / "evaluation.json").read_text())
    assert evaluated["items"] == probed.pop("items") == 2
    assert evaluated["control_fidelity"] == pytest.approx(probed, abs=0.02)
    assert all(error >= 0 for error in evaluated["standard_error"].values())


def test_the_ablation_under_four_prompts_is_the_same_at_the_end_of_a_run_and_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = launch("callback=[default,four_prompts]", "callback.prompts.items=3", "trainer.max_steps=1", *SMALL)
    at_the_end = json.loads((folder / "prompts.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    fidelity = {mode: result["control_fidelity"] for mode, result in at_the_end["prompt_modes"].items()}
    assert list(fidelity) == ["none", "insufficient", "conflicting", "perfect"]
    assert summary["prompt_fidelity"] == {mode: scores["calibrated"] for mode, scores in fidelity.items()}
    assert "Under each kind of prompt" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    launch("task=evaluate", f"run={folder}", "num_items=3", "prompt_mode=all")
    later = json.loads((folder / "prompts.json").read_text())
    for mode, scores in fidelity.items():
        assert later["prompt_modes"][mode]["control_fidelity"] == pytest.approx(scores, abs=0.02)
    assert "Under each kind of prompt" in (folder / "report.html").read_text()
    launch("task=evaluate", f"run={folder}", "num_items=3", "prompt_mode=none")
    alone = json.loads((folder / "evaluation.json").read_text())
    assert alone["prompt_mode"] == "none"
    assert alone["control_fidelity"]["floor"] == pytest.approx(fidelity["none"]["floor"], abs=0.02)
    assert "prompts.png" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="prompt_mode=own: must be all, one of none"):
        launch("task=evaluate", f"run={folder}", "prompt_mode=own")


@pytest.fixture
def no_wandb_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "/nonexistent")


@pytest.mark.usefixtures("no_wandb_login")
def test_wandb_is_offline_without_a_login_says_how_to_upload_and_a_resumed_run_goes_on_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = launch("trainer.max_steps=2", *[o for o in SMALL if o != "logger=none"])
    assert f"wandb sync {folder / 'wandb'}" in capsys.readouterr().out
    launch(f"resume={folder}", "trainer.max_steps=4")
    first, second = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert first.name == second.name, "one run, in two sittings"


def test_a_run_that_is_ended_early_is_finished_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["stop=[flat,hopeless]", "callback.hopeless.after=4", "trainer.max_steps=12", *SMALL]
    folder = launch(*arguments, "callback.probe.every=4", "optimizer.lr=1e-12")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["optimizer_steps"] == 4 and summary["stopped_because"].startswith("hopeless: control gain is 0.000")
    assert (folder / "controlnet").is_dir() and (folder / "checkpoints" / "last.ckpt").is_file()
    said = capsys.readouterr().out.splitlines()[-1]
    assert "stopped early, hopeless" in said
    assert (
        f"probes took {summary['probe_share']:.0%} of the time of training" in said and 0 < summary["probe_share"] < 1
    )
    columns = rows(folder)[0].keys()
    assert not {name for name in columns if name not in CLOCKS and name.split("/")[0] not in SECTIONS}
    assert rows(folder)[-1]["optimizer_step"] == "4"


def small_folder(root: Path) -> Path:
    """A user's own data set of eight pairs."""
    for side in ("source", "target"):
        (root / side).mkdir(parents=True)
        for shade, name in enumerate("abcdefgh"):
            Image.new("RGB", (128, 128), (9 * shade, 0, 0)).save(root / side / f"{name}.png")
    lines = [json.dumps({"source": f"{n}.png", "target": f"{n}.png", "prompt": ""}) for n in "abcdefgh"]
    (root / "prompt.json").write_text("\n".join(lines))
    return root


BAD_INPUT = {
    "run_folder_that_is_none": (["resume=nowhere"], "nowhere"),
    "resolution": (["data.resolution=100"], "data.resolution=100"),
    "base_folder_that_is_no_pipeline": (["base.path=."], "model_index.json"),
    "base_folder_that_is_not_there": (["base.path=./nowhere/at/all"], "base.path=./nowhere/at/all"),
    "hub_id_without_network": (["base=sd15"], "stable-diffusion-v1-5"),
    "no_prompt_json": (["data=folder", "data.root=empty"], "prompt.json"),
    "line_that_does_not_parse": (["data=folder", "data.root=broken"], "prompt.json:2"),
    "truncated_image": (["data=folder", "data.root=truncated", "data.heldout=0.5"], "b.png"),
    "sizes_that_differ": (["data=folder", "data.root=unequal", "data.heldout=0.5"], "64x64"),
    "nothing_held_out": (["data=folder", "data.root=fine", "data.heldout=0"], "data.heldout"),
    "root_not_given": (["data=folder"], "data.root"),
    "compare_of_a_run_that_is_none": (["task=compare", "compare=[empty]"], "empty: no config.yaml"),
    "compare_of_no_list": (["task=compare", "compare=empty"], "compare=empty"),
    "compare_of_nothing": (["task=compare", "compare=[]"], "no finished run"),
    "sample_without_run": (["task=sample"], "run must be given"),
    "part_to_unlock": (["model=large_scale", "model.unlock=none"], "model.unlock=none: must be decoder, all, or null"),
    "hint_widths": (["model.hint_channels=[16]"], "model.hint_channels=[16]: must be 4 widths"),
    "negative_std": (["init=gaussian_control", "init.std=-1"], "init.std=-1"),
    "part_to_draw_anew": (["init=scratch", "init.random=unet"], "init.random=unet: must be a list"),
    "probe_spacing": (["callback.probe.every=0"], "callback.probe.every=0: must be a whole number of at least 1"),
    "no_items": (["callback.probe.items=0"], "callback.probe.items=0"),
    "checkpoint_spacing": (["callback.checkpoint.every=-1"], "callback.checkpoint.every=-1"),
    "rows": (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps=0"),
    "sampler_steps": (["sampler.steps=0"], "sampler.steps=0"),
    "condition_that_judges_nothing": (["condition=none"], "condition=none: a probe cannot say"),
    "prompts_without_a_measure": (
        ["condition=none", "callback=[default,four_prompts]", "~callback.probe"],
        "condition=none: nothing can say",
    ),
    "verdict_without_probe": (["stop=flat", "~callback.probe"], "stop=flat: it goes by the probes"),
    "probes_of_flat": (["stop=flat", "callback.flat.probes=0"], "callback.flat.probes=0"),
    "one_phase_without_a_list": (["phases=4"], "phases=4: must be a list of mappings"),
    "evaluate_of_a_run_that_is_none": (["task=evaluate", "run=empty"], "no run folder"),
    "sample_of_a_run_that_is_none": (["task=sample", "run=empty", "control=x.png"], "no run folder"),
}


@pytest.mark.parametrize("mistake", BAD_INPUT)
def test_bad_input_gets_one_clear_line_and_leaves_nothing_behind(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("empty").mkdir()
    with (small_folder(Path("broken")) / "prompt.json").open("w") as file:
        file.write('{"source": "a.png", "target": "a.png", "prompt": ""}\n{"source": \n')
    truncated = small_folder(Path("truncated")) / "target" / "b.png"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    Image.new("RGB", (64, 64)).save(small_folder(Path("unequal")) / "source" / "b.png")
    small_folder(Path("fine"))
    before = sorted(Path().rglob("*"))

    overrides, named = BAD_INPUT[mistake]
    with pytest.raises(SystemExit) as stop:
        launch("logger=none", *overrides)
    line = stop.value.code
    assert isinstance(line, str) and named in line and "\n" not in line
    assert not [path for path in sorted(Path().rglob("*")) if path not in before and path.parts[0] != "cache"]


@pytest.mark.parametrize("argument, named", [("data=folder", "data.root"), ("init=magic", "init"), ("seed=x", "seed")])
def test_the_command_line_ends_with_status_1_and_one_line(argument: str, named: str) -> None:
    bad = cli(argument)
    assert bad.returncode == 1 and bad.stderr.startswith(f"cnx: {named}") and bad.stderr.count("\n") == 1


def test_multirun_runs_one_job_after_another() -> None:
    result = cli("-m", "init=scratch,sd_copy", "name=ablation", "trainer.max_steps=1", *SMALL)
    assert result.returncode == 0, result.stderr
    summaries = [json.loads(file.read_text()) for file in Path("runs/ablation").glob("*/summary.json")]
    assert sorted(summary["init"] for summary in summaries) == ["scratch", "sd_copy"]


def test_help_names_every_group_and_option() -> None:
    page = cli("--help").stdout
    listed = dict(line.split(": ") for line in page.splitlines() if line.count(": ") == 1)
    for file in (REPOSITORY / "conf").glob("*/*.yaml"):
        assert file.stem in listed[file.parent.name].split(", ")
    assert listed["experiment"].split(", ") == EXPERIMENTS
    assert "init_ablation" in listed["sweep"].split(", ")
