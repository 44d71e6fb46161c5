"""Runs that change under way, and are stopped and go on in between."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from cnx.callback import EMA, Hopeless, Interrupt, MetricsCSV, Phases, Probe, ProbeRecord, RunProgress, averaged
from cnx.condition import Agreement
from cnx.errors import InputError
from cnx.objective import Denoise
from cnx.sampler import DDIM
from cnx.schedule import Schedule
from cnx.task.training import Training

Fit = Callable[..., tuple[Any, Trainer]]


class SaveAt(Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


class Watch(Callback):
    """What is trained, at which rate and from how many micro-batches, in each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.steps.append(
            {
                "step": trainer.global_step,
                "trained": {name for name, p in pl_module.named_parameters() if p.grad is not None},
                "lrs": [group["lr"] for group in optimizer.param_groups],
                "eps": {group["eps"] for group in optimizer.param_groups},
                "accumulated": trainer.accumulate_grad_batches,
                "micro_batches": trainer.fit_loop.epoch_loop.batch_progress.total.started,
            }
        )


class Verdict(Probe):
    """A probe whose samples need no drawing: it converges at step 2, which step 4 confirms."""

    def __init__(self) -> None:
        super().__init__(condition=None, sampler=None, every=2)  # type: ignore[arg-type]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if all(record.step != step for record in self.history):
            self.history.append(ProbeRecord(step, 0.0, 0.0, 0.2 if step < 2 else 0.7))


class Ended(Hopeless):
    def judge(self, probe: Probe) -> str | None:
        return "late" if probe.history[-1].step >= self.since + self.after else None


def final(module: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


SWITCHES = [
    {"when": 2, "links": "all", "accumulate_grad_batches": 2},
    {"when": 4, "unlock": "decoder", "lr": 3e-3},
    {"when": 6, "unlock": "all", "links": "mid"},
    {"when": 7, "unlock": None, "links": "all", "stop_after": 2},
]


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6, 8])
def test_a_resumed_run_equals_the_uninterrupted_one(fit_training: Fit, tmp_path: Path, at: int) -> None:
    settings = {"links": "mid", "max_steps": 12}
    whole, trainer = fit_training(Phases(SWITCHES), SaveAt(at, tmp_path / "at.ckpt"), name="whole", **settings)
    assert trainer.global_step == 9, "stopped two steps after step 7"
    resumed, trainer = fit_training(Phases(SWITCHES), name="resumed", ckpt_path=tmp_path / "at.ckpt", **settings)
    assert trainer.global_step == 9
    wanted = final(whole)
    assert final(resumed).keys() == wanted.keys()
    for name, parameter in final(resumed).items():
        assert torch.equal(parameter, wanted[name]), name
    assert resumed.micro_batch == whole.micro_batch
    begun = [json.loads((tmp_path / name / "phases.json").read_text()) for name in ("whole", "resumed")]
    assert begun[0] == begun[1] and [phase["step"] for phase in begun[0]] == [2, 4, 6, 7]


def test_each_phase_changes_what_it_names_from_its_step_on(
    fit_training: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch, table = Watch(), MetricsCSV(tmp_path / "run")
    module, _ = fit_training(Phases(SWITCHES), watch, links="mid", max_steps=12, logger=table)

    def trained(step: int) -> set[str]:
        return {name.split(".")[1] + "." + name.split(".")[2] for name in watch.steps[step]["trained"]}

    skips, decoder, encoder = "branch.controlnet_down_blocks", "base.unet", "down_blocks"
    assert skips not in trained(0) and skips in trained(2) and skips not in trained(6) and skips in trained(7)
    assert [decoder in trained(step) for step in range(9)] == [False] * 4 + [True] * 3 + [False] * 2
    encoded = [any(f"base.unet.{encoder}" in name for name in step["trained"]) for step in watch.steps]
    assert encoded == [False] * 6 + [True] + [False] * 2
    assert [set(step["lrs"]) for step in watch.steps] == [{1e-3}] * 4 + [{3e-3}] * 5
    assert {eps for step in watch.steps for eps in step["eps"]} == {1e-14}
    assert [step["accumulated"] for step in watch.steps] == [1, 1] + [2] * 7
    assert [step["micro_batches"] for step in watch.steps] == [1, 2, 4, 6, 8, 10, 12, 14, 16]

    rows = [row for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open()) if row["train/phase"]]
    clocks = [(row["train/phase"], row["optimizer_step"], row["micro_batch"], row["samples_seen"]) for row in rows]
    assert clocks == [("1", "2", "2", "4"), ("2", "4", "6", "12"), ("3", "6", "10", "20"), ("4", "7", "12", "24")]
    begun = json.loads((tmp_path / "run" / "phases.json").read_text())
    assert begun[1] == {"phase": 2, "step": 4, "when": 4, "changed": {"unlock": "decoder", "lr": 3e-3}}
    assert "phase 1 at step 2: links all, accumulate_grad_batches 2\n" in capsys.readouterr().out


def test_a_gradient_of_before_the_change_is_no_part_of_the_step_after_it(fit_training: Fit) -> None:
    """At micro-batch 3 an accumulation of 4 begins; Lightning clears gradients at multiples of 4 alone."""

    class Clear(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.optimizers[0].zero_grad()

    phases = [{"when": 3, "accumulate_grad_batches": 4}]
    ours, _ = fit_training(Phases(phases), max_steps=4)
    cleared, _ = fit_training(Phases(phases), Clear(), max_steps=4)
    assert ours.micro_batch == 4, "the first step after the change is filled up from the epoch's beginning"
    assert all(torch.equal(a, b) for a, b in zip(final(ours).values(), final(cleared).values(), strict=True))


def test_a_step_of_fewer_micro_batches_takes_their_mean_gradient(fit_training: Fit) -> None:
    """Of the four micro-batches that make a step from step 3 on, the first one holds one."""
    ours, _ = fit_training(Phases([{"when": 3, "accumulate_grad_batches": 4}]), max_steps=4)
    plain, _ = fit_training(max_steps=4)
    assert ours.micro_batch == plain.micro_batch == 4
    assert all(torch.equal(a, b) for a, b in zip(final(ours).values(), final(plain).values(), strict=True))


def test_what_begins_to_be_trained_takes_the_rate_of_the_phase_or_of_the_model_or_of_the_branch(
    fit_training: Fit,
) -> None:
    def rates(phase: dict[str, Any], unlocked_lr: float | None) -> list[float]:
        watch = Watch()
        phases = [{"when": 0, "lr": 2e-3}, {"when": 1, "unlock": "decoder", **phase}]
        fit_training(Phases(phases), watch, max_steps=2, unlocked_lr=unlocked_lr)
        return watch.steps[1]["lrs"]

    assert rates({}, None) == [2e-3, 2e-3]
    assert rates({}, 5e-4) == [2e-3, 5e-4]
    assert rates({"lr": 4e-3}, 5e-4) == [4e-3, 4e-3]


@pytest.mark.parametrize(
    ("phase", "end", "totals"),
    [
        ({"when": 3, "stop_after": 2}, 5, [5] * 5),  # known from the first step on
        ({"when": "converged", "stop_after": 2}, 6, [12] * 3 + [6] * 3),  # from the moment that it begins at
    ],
)
def test_the_end_that_a_phase_sets_is_the_progress_bars_and_the_cooldowns(
    fit_training: Fit, phase: dict[str, Any], end: int, totals: list[int]
) -> None:
    class Totals(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            found.append(bar._total)

    found: list[int | None] = []
    bar = RunProgress(Console(file=io.StringIO()))
    verdict = [Verdict()] if phase["when"] == "converged" else []
    callbacks = [*verdict, Phases([phase]), bar, Totals()]
    _, trainer = fit_training(*callbacks, max_steps=12, cooldown=0.4, enable_progress_bar=True)
    assert trainer.global_step == end and found == totals
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * (1 / end) / 0.4)


@pytest.mark.parametrize("at", [None, 5, 6, 9, 10])
def test_a_run_of_epochs_knows_its_end_when_the_accumulation_has_changed(
    fit_training: Fit, tmp_path: Path, at: int | None
) -> None:
    """Epochs of six micro-batches: eight steps of one, then steps that end at the fourth and the sixth."""

    class Totals(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            found.append((trainer.global_step, bar._total))

    class Bar(RunProgress):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super().on_train_start(trainer, pl_module)
            self.total_at_start = self._total

    found: list[tuple[int, int | None]] = []
    bar = Bar(Console(file=io.StringIO()))
    settings = {"max_steps": -1, "max_epochs": 3, "cooldown": 0.4, "enable_progress_bar": True}
    phase = {"when": 8, "accumulate_grad_batches": 4}
    path = tmp_path / "at.ckpt"
    if at:
        fit_training(Phases([phase]), RunProgress(Console(file=io.StringIO())), SaveAt(at, path), **settings)
    _, trainer = fit_training(
        Phases([phase]), bar, Totals(), name="resumed", ckpt_path=path if at else None, **settings
    )
    assert trainer.global_step == 12
    assert {total for step, total in found if step >= 8} == {12} and bar.total_at_start == (12 if (at or 0) > 8 else 18)
    assert {total for step, total in found if step < 8} == ({18} if (at or 0) < 7 else set())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * (1 / 12) / 0.4), "not 0 since step 8"


@pytest.mark.parametrize("at", [3, 5])
def test_a_phase_can_wait_for_convergence(fit_training: Fit, tmp_path: Path, at: int) -> None:
    def callbacks() -> list[Callback]:
        return [Verdict(), Phases([{"when": "converged", "links": "all"}])]

    whole, trainer = fit_training(*callbacks(), SaveAt(at, tmp_path / "at.ckpt"), links="mid", max_steps=6)
    resumed, _ = fit_training(*callbacks(), name="resumed", ckpt_path=tmp_path / "at.ckpt", links="mid", max_steps=6)
    assert json.loads((tmp_path / "resumed" / "phases.json").read_text())[0]["step"] == 4
    assert whole.model.links == "all"
    assert all(torch.equal(a, b) for a, b in zip(final(whole).values(), final(resumed).values(), strict=True))


def test_a_phase_beyond_the_end_is_said(fit_training: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit_training(Phases([{"when": 1, "stop_after": 2}, {"when": 4, "lr": 1e-5}]), max_steps=9)
    assert "phase 2 is for step 4 and does not begin: the run ends at 3" in capsys.readouterr().out


def test_no_verdict_ends_a_run_before_a_phase_at_a_step(fit_training: Fit) -> None:
    def verdict() -> list[Callback]:
        return [Verdict(), Ended(after=2)]

    _, trainer = fit_training(*verdict(), Phases([{"when": 5, "lr": 1e-5}]), max_steps=9)
    assert trainer.global_step == 7, "two steps after the phase began"
    _, trainer = fit_training(*verdict(), Phases([{"when": 20, "lr": 1e-5}]), name="beyond", max_steps=9)
    assert trainer.global_step == 2, "a phase that never begins is not waited for"
    _, trainer = fit_training(*verdict(), Phases(), name="none", max_steps=9)
    assert trainer.global_step == 2


def test_no_verdict_ends_a_run_at_the_convergence_that_a_phase_waits_for(fit_training: Fit) -> None:
    phases = Phases([{"when": "converged", "links": "all"}])
    _, trainer = fit_training(Verdict(), Ended(after=4), phases, links="mid", max_steps=12)
    assert [begun.step for begun in phases.begun] == [4] and trainer.global_step == 8


def test_no_phase_begins_at_the_step_at_which_a_run_is_interrupted(fit_training: Fit, tmp_path: Path) -> None:
    class CtrlC(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    first, second, saved = Phases(SWITCHES[:1]), Phases(SWITCHES[:1]), SaveAt(2, tmp_path / "at.ckpt")
    _, trainer = fit_training(Interrupt(), CtrlC(), first, saved, links="mid", max_steps=4)
    assert trainer.global_step == 2 and not first.begun, "its probe has been put off, which comes first"
    fit_training(second, name="resumed", ckpt_path=saved.path, links="mid", max_steps=4)
    assert [begun.step for begun in second.begun] == [2]


@pytest.mark.parametrize("phase", [{"unlock": "decoder"}, {"links": "all"}])
def test_a_run_resumed_at_a_phase_s_own_step_has_the_uninterrupted_average(
    fit_training: Fit, tmp_path: Path, phase: dict[str, Any]
) -> None:
    whole, resumed, saved = EMA(0.9), EMA(0.9), SaveAt(2, tmp_path / "at.ckpt")
    phases = [{"when": 2, **phase}]
    fit_training(whole, Phases(phases), saved, links="mid", max_steps=4)
    fit_training(resumed, Phases(phases), name="resumed", ckpt_path=saved.path, links="mid", max_steps=4)
    assert whole.average.keys() == resumed.average.keys()
    for name, average in whole.average.items():
        assert torch.equal(average, resumed.average[name]), name


def test_an_average_of_what_is_locked_again_is_dropped(fit_training: Fit) -> None:
    ema = EMA(0.9)
    phases = Phases([{"when": 1, "unlock": "decoder"}, {"when": 3, "unlock": None}])
    training, trainer = fit_training(ema, phases, max_steps=5)
    locked = {name: p.detach().clone() for name, p in training.named_parameters() if not p.requires_grad}
    assert not ema.average.keys() & locked.keys() and training.model.base_trained
    with averaged(trainer, training):
        assert all(torch.equal(p, locked[name]) for name, p in training.named_parameters() if name in locked)


class Poison(Callback):
    """Weights that are no numbers during some steps, counted from 0."""

    def __init__(self, steps: range) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.steps:
            self.good = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
            for parameter in pl_module.model.branch.parameters():  # pyright: ignore
                parameter.data.fill_(torch.nan)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step - 1 in self.steps:
            for name, parameter in pl_module.named_parameters():
                if name in self.good:
                    parameter.data.copy_(self.good[name])
            trainer.optimizers[0].state.clear()


def test_a_loss_that_stays_no_number_ends_the_run_with_a_line(fit_training: Fit) -> None:
    with pytest.raises(InputError, match="train/loss is nan at step 12; lower optimizer.lr"):
        fit_training(Poison(range(2, 30)), Phases(), max_steps=30)


def test_a_step_that_overflows_ends_no_run(fit_training: Fit) -> None:
    training, _ = fit_training(Poison(range(1, 4)), Phases(), max_steps=5)
    assert training.logged_loss is not None and math.isfinite(training.logged_loss)


def test_a_phase_that_cannot_be_is_said_in_a_line_before_training() -> None:
    for phases in (4, "converged", [4], {"when": 1}):
        with pytest.raises(InputError, match="must be a list of mappings"):
            Phases(phases)  # pyright: ignore[reportArgumentType]
    for phase, named in (
        ({"links": "all"}, "phases[0]: when is missing"),
        ({"when": "soon"}, "phases[0].when=soon: must be an optimizer step, or converged"),
        ({"when": -1}, "phases[0].when=-1"),
        ({"when": 3, "link": "all"}, "phases[0].link: no such key; there are when, links"),
        ({"when": 3, "links": "some"}, "phases[0].links=some: must be all or mid"),
        ({"when": 3, "unlock": "encoder"}, "phases[0].unlock=encoder: must be decoder, all or null"),
        ({"when": 3, "lr": 0}, "phases[0].lr=0"),
        ({"when": 3, "lr": float("inf")}, "phases[0].lr=inf"),
        ({"when": 3, "lr": True}, "phases[0].lr=True"),
        ({"when": 3, "accumulate_grad_batches": 0.5}, "phases[0].accumulate_grad_batches=0.5"),
        ({"when": 3, "stop_after": 0}, "phases[0].stop_after=0"),
    ):
        with pytest.raises(InputError) as error:
            Phases([phase])
        assert named in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"phases\[0\].when=converged: no callback.probe"):
        Phases([{"when": "converged"}]).check(probed=False)
    Phases([{"when": "converged"}]).check(probed=True)


def test_a_run_that_goes_on_keeps_the_phases_it_has_begun_and_may_get_others(fit_training: Fit, tmp_path: Path) -> None:
    checkpoint = tmp_path / "at.ckpt"
    first = {"when": 1, "links": "all", "stop_after": 2}
    fit_training(Phases([first]), SaveAt(3, checkpoint), links="mid", max_steps=9)
    with pytest.raises(InputError, match=r"phases\[0\].stop_after=2: has ended the run at step 3"):
        Phases([first]).check(probed=False, checkpoint=checkpoint)
    with pytest.raises(InputError, match=r"phases\[0\]: began at step 1 as"):
        Phases([{"when": 1, "unlock": "all"}]).check(probed=False, checkpoint=checkpoint)
    with pytest.raises(InputError, match=r"phases\[0\]: began at step 1 as"):
        Phases([]).check(probed=False, checkpoint=checkpoint)
    more = [{"when": 1, "links": "all"}, {"when": 2, "lr": 1e-5}]
    Phases(more).check(probed=False, checkpoint=checkpoint)
    _, trainer = fit_training(Phases(more), name="more", ckpt_path=checkpoint, links="mid", max_steps=6)
    assert trainer.global_step == 6
    begun = json.loads((tmp_path / "more" / "phases.json").read_text())
    assert [(phase["phase"], phase["step"]) for phase in begun] == [(1, 1), (2, 3)]


@pytest.mark.skipif(sys.platform == "win32", reason="starts its processes by fork")
def test_two_processes_share_the_gradients_of_what_a_phase_begins_to_train(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, repository / "tests" / "callback" / "two_processes.py"]
    places = os.pathsep.join([str(repository), str(repository / "tests")])
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 6: apart by 0\n" in done.stdout


class Brightness:
    """A condition that asks for bright pictures, whatever the map."""

    def judge(self, drawn: np.ndarray, wanted: np.ndarray) -> Agreement:
        brightness = float(drawn.mean() / 255)
        return Agreement(brightness, brightness)


def test_a_probe_measures_a_trained_base_against_what_it_draws_alone_now(fit_training: Fit, tmp_path: Path) -> None:
    """The branch's zero convolutions never move, so there is no control, however far the base goes."""

    class HoldBranch(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = None

    sampler = DDIM(steps=2, guidance=2.0)
    probe = Probe(Brightness(), sampler, items=2, every=2, gain_every=1)
    phases = Phases([{"when": 1, "unlock": "all", "lr": 0.05}])
    module, _ = fit_training(probe, phases, HoldBranch(), max_steps=4, devices=1)
    assert module.model.base_trained
    assert [record.gain for record in probe.gains] == pytest.approx([0.0] * 5, abs=1e-6)
    first, *_, last = probe.history
    assert first.raw != last.raw, "the base has gone somewhere"
    assert probe.floor is not None and probe.floor.raw == last.raw
    assert [record.floor for record in probe.history] == [record.raw for record in probe.history], "each its own"
    saved = json.loads((tmp_path / "run" / "samples" / "probe.json").read_text())["probes"]
    assert [record["floor"] for record in saved] == [record.raw for record in probe.history]


@pytest.fixture
def fit_training(toy_model: Callable[[], Any], toy_data: Callable[[], Any], tmp_path: Path) -> Fit:
    """Train the toy by the real training step in `tmp_path/name`; its wiring and trainer settings as keywords."""

    def run(
        *callbacks: Callback,
        name: str = "run",
        ckpt_path: Path | None = None,
        links: Any = "all",
        unlocked_lr: float | None = None,
        cooldown: float = 0.0,
        **settings: Any,
    ) -> tuple[Training, Trainer]:
        model = toy_model()
        model.link(links)
        model.unlocked_lr = unlocked_lr
        training = Training(
            model=model,
            objective=Denoise(),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, eps=1e-14, fused=True),
            null_text=torch.zeros(1, 5, 8),
            prompt_dropout=0.5,
            schedule=Schedule(cooldown=cooldown),
            seed=0,
            log_every_n_steps=1,
        )
        trainer = Trainer(
            **{"max_epochs": -1, "logger": False, "enable_progress_bar": False, **settings},
            callbacks=list(callbacks),
            accelerator="cpu",
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / name,
        )
        trainer.fit(training, datamodule=toy_data(), ckpt_path=ckpt_path, weights_only=False)
        return training, trainer

    return run
