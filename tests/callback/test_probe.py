import csv
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cnx.callback import Interrupt, MetricsCSV, Probe, ProbeRecord
from cnx.callback.bench import Score
from cnx.condition import Agreement
from cnx.data.module import Batch
from cnx.errors import InputError
from cnx.metric import calibrate
from cnx.sampler import DDIM

Fit = Callable[..., tuple[Any, Trainer]]


class Likeness:
    """A condition whose fidelity is a smooth function of the pictures."""

    def judge(self, drawn: np.ndarray, wanted: np.ndarray) -> Agreement:
        likeness = float(1 - np.abs(drawn.astype(float) - wanted).mean() / 255)
        return Agreement(likeness, likeness**2)


class CarelessDDIM(DDIM):
    """Leaves marks everywhere: it moves every random state, and keeps a list of its calls."""

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not hasattr(self, "calls"):
            self.calls: list[dict[str, Any]] = []
        strength = args[4] if len(args) > 4 else kwargs.get("strength", 1.0)
        autocast = torch.is_autocast_enabled("cpu")
        self.calls.append({"strength": strength, "training": model.branch.training, "autocast": autocast})
        torch.manual_seed(123)
        np.random.seed(123)
        random.seed(123)
        return super().__call__(model, *args, **kwargs)


def probe(**settings: Any) -> Probe:
    sampler = settings.pop("sampler", DDIM(steps=2, guidance=2.0, chunk=2))
    plain = {"items": 3, "every": 2, "gain_every": 1, "adaptive": False, "budget": None}
    return Probe(Likeness(), sampler, **{**plain, **settings})


def steps(records: list[Any]) -> list[int]:
    return [record.step for record in records]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_probes_come_at_the_start_at_every_nth_optimizer_step_and_at_the_end(fit: Fit, tmp_path: Path) -> None:
    watched = probe(gain_every=3)
    table = MetricsCSV(tmp_path / "run")
    fit(watched, max_steps=5, accumulate_grad_batches=3, logger=table)
    assert steps(watched.history) == [0, 2, 4, 5]
    assert steps(watched.gains) == [0, 2, 3, 4, 5]

    samples = tmp_path / "run" / "samples"
    probed = [f"step_{step:06d}" for step in (0, 2, 4, 5)]
    expected = {"heldout.npz", "probe.json"} | {f"{name}.{kind}" for name in probed for kind in ("png", "npz")}
    assert {path.name for path in samples.iterdir()} == expected
    rows = [row for row in read(table.path) if row["control/fidelity_raw"]]
    assert [(row["optimizer_step"], row["micro_batch"], row["samples_seen"]) for row in rows] == [
        ("0", "0", "0"),
        ("2", "6", "12"),
        ("4", "12", "24"),
        ("5", "15", "30"),
    ]
    published = [float(row["control/fidelity_published"]) for row in rows]
    assert published == pytest.approx([record.published for record in watched.history])
    assert all(0 < record.published < record.raw for record in watched.history)


def test_a_watched_run_learns_what_an_unwatched_one_does(fit: Fit) -> None:
    unwatched, _ = fit(max_steps=4)
    watched, _ = fit(probe(sampler=CarelessDDIM(steps=2)), max_steps=4)
    for (name, ours), theirs in zip(watched.named_parameters(), unwatched.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert any((p != q).any() for p, q in zip(fit(max_steps=3)[0].parameters(), unwatched.parameters(), strict=True))


def test_probes_see_an_evaluated_model_under_the_precision_of_training(fit: Fit) -> None:
    for precision, autocast in (("32-true", False), ("bf16-mixed", True)):
        sampler = CarelessDDIM(steps=2)
        toy, _ = fit(probe(sampler=sampler), max_steps=2, precision=precision)
        assert all(not call["training"] and call["autocast"] == autocast for call in sampler.calls)
        assert toy.model.branch.training and not toy.model.base.training


def test_the_numbers_are_those_of_the_saved_pictures(fit: Fit, tmp_path: Path) -> None:
    watched = probe()
    toy, trainer = fit(watched, max_steps=3)
    folder = tmp_path / "run" / "samples"
    heldout = np.load(folder / "heldout.npz")
    summary = json.loads((folder / "probe.json").read_text())

    def score(images: np.ndarray) -> float:
        pairs = zip(images, heldout["control"], strict=True)
        return float(np.mean([Likeness().judge(drawn, wanted).fidelity for drawn, wanted in pairs]))

    assert summary["floor"]["raw"] == pytest.approx(score(heldout["floor"]))
    assert summary["ceiling"]["raw"] == pytest.approx(score(heldout["reconstruction"]))
    assert list(heldout["prompts"]) == ["picture 0", "picture 1", "picture 2"]
    for record in summary["probes"]:
        samples = np.load(folder / f"step_{record['step']:06d}.npz")["samples"]
        assert samples.dtype == np.uint8 and samples.shape == heldout["control"].shape
        assert record["raw"] == pytest.approx(score(samples))
        assert record["calibrated"] == calibrate(record["raw"], summary["floor"]["raw"], summary["ceiling"]["raw"])

    # The last samples are those of the last weights, drawn from the noise of the seed.
    given = trainer.datamodule.heldout(3)  # pyright: ignore[reportAttributeAccessIssue]
    noise = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    toy.model.eval()
    latents = DDIM(steps=2, guidance=2.0)(toy.model, given.text, toy.null_text, given.control, noise)
    with torch.no_grad():
        drawn = (toy.model.base.decode_latents(latents) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(drawn - samples).max() <= 1  # of 255: batches of another size round differently
    first = np.load(folder / "step_000000.npz")["samples"]
    assert np.array_equal(first, heldout["floor"]), "a branch with zero convolutions at zero draws what the base draws"
    assert not np.array_equal(first, samples)


def test_control_gain_is_zero_at_first_and_then_what_the_losses_say(fit: Fit) -> None:
    watched = probe(items=3)
    toy, trainer = fit(watched, max_steps=3)
    assert watched.gains[0].gain == pytest.approx(0, abs=1e-6)
    fixed = watched._bench
    assert fixed is not None
    toy.model.eval()
    with torch.no_grad():
        losses = [toy.objective(toy.model, fixed.batch, fixed.eps, fixed.t, strength).mean() for strength in (1.0, 0.0)]
    assert watched.gains[-1].gain == pytest.approx(float(1 - losses[0] / losses[1]), abs=1e-5)
    assert watched.gains[-1].gain != 0
    assert sorted(fixed.t.tolist()) == [166, 500, 833], "the middles of the thirds of 1000 timesteps"
    assert isinstance(fixed.batch, Batch)


class SaveAt(Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_has_the_history_of_one_that_was_never_stopped(fit: Fit, tmp_path: Path) -> None:
    saved = tmp_path / "saved.ckpt"
    whole = probe()
    fit(whole, SaveAt(2, saved), name="whole", max_steps=4)
    sampler = CarelessDDIM(steps=2, guidance=2.0, chunk=2)
    resumed = probe(sampler=sampler)
    fit(resumed, name="whole", max_steps=4, ckpt_path=saved)
    assert steps(resumed.history) == [0, 2, 4] and steps(resumed.gains) == [0, 1, 2, 3, 4]
    assert [call["strength"] for call in sampler.calls] == [1.0], "neither the floor nor step 2 are drawn again"
    assert resumed.history[:2] == whole.history[:2] and resumed.gains[:3] == whole.gains[:3]
    assert (resumed.floor, resumed.ceiling) == (whole.floor, whole.ceiling)
    summary = json.loads((tmp_path / "whole" / "samples" / "probe.json").read_text())
    assert [record["step"] for record in summary["probes"]] == [0, 2, 4]


class ScriptedGain(Probe):
    """A probe that finds control gains of our choice, a plateau and then a rise, and a ceiling above the floor."""

    span = 0.5

    def _prepare(self, trainer: Trainer, run: Any) -> None:
        super()._prepare(trainer, run)
        assert self.floor is not None
        self.ceiling = replace(self.floor, raw=self.floor.raw + self.span)

    def _measure_gain(self, trainer: Trainer, run: Any) -> None:
        super()._measure_gain(trainer, run)
        step = trainer.global_step
        self.gains[-1] = replace(self.gains[-1], gain=0.001 * (step % 2) + max(0.0, 0.05 * (step - 7)))


def test_where_control_gain_rises_there_are_more_probes_and_a_resumed_run_makes_the_same(
    fit: Fit, tmp_path: Path
) -> None:
    def adaptive() -> Probe:
        plain = {"items": 2, "every": 12, "gain_every": 1, "budget": None}
        return ScriptedGain(Likeness(), DDIM(steps=1, guidance=2.0, chunk=2), **plain)

    saved = tmp_path / "saved.ckpt"
    whole, resumed = adaptive(), adaptive()
    fit(whole, SaveAt(9, saved), max_steps=15)
    # 0.05 at step 8, then whenever it has grown by more than a quarter.
    assert steps(whole.history) == [0, 8, 9, 10, 11, 12, 14, 15]
    fit(resumed, max_steps=15, ckpt_path=saved)
    assert steps(resumed.history) == steps(whole.history)


def test_a_base_that_can_draw_nothing_is_not_probed_for_a_rise(fit: Fit) -> None:
    watched = ScriptedGain(Likeness(), DDIM(steps=1, chunk=2), items=2, every=12, gain_every=1, budget=None)
    watched.span = 0.0
    fit(watched, max_steps=15)
    assert steps(watched.history) == [0, 12, 15]


class Slow(DDIM):
    """Takes its time, as a clock of our own tells it."""

    def __init__(self, clock: "Clock", seconds: float) -> None:
        super().__init__(steps=1, guidance=2.0)
        self.clock, self.seconds = clock, seconds

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.clock.now += self.seconds
        return super().__call__(*args, **kwargs)


class Clock(Callback):
    """Time that passes by a second at each optimizer step, and when someone says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("cnx.callback.probe.time.monotonic", lambda: self.now)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.now += 1.0


def test_probes_stay_within_their_share_of_the_time_and_what_is_left_out_is_said_once(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, saved = Clock(monkeypatch), tmp_path / "saved.ckpt"
    # 13.3 of 33.3 seconds may go to probes of 3 seconds each: to four, besides the floor, the first and the last.
    settings = {"items": 2, "every": 2, "gain_every": 1, "adaptive": True, "budget": 0.4}
    whole = ScriptedGain(Likeness(), Slow(clock, 3.0), **settings)
    fit(clock, whole, SaveAt(9, saved), max_steps=20)
    assert steps(whole.history) == [0, 4, 8, 12, 16, 20]
    assert whole.share == pytest.approx((1 + 6) * 3 / (20 + 21))
    said = capsys.readouterr().out
    assert said.count("no probe at every 2 steps, but at every 4: more would take above 40% of the run's time") == 1
    assert said.count("no more probes between the regular ones") == 1

    # The price is in the checkpoint: on a machine of another speed the same probes are made.
    clock.now = 0.0
    resumed = ScriptedGain(Likeness(), Slow(clock, 0.1), **settings)
    fit(clock, resumed, max_steps=20, ckpt_path=saved)
    assert steps(resumed.history) == steps(whole.history)
    assert resumed.share == pytest.approx((4 * 3 + 3 * 0.1) / (20 + 12 + 0.3), abs=0.02)

    cheap = ScriptedGain(Likeness(), Slow(clock, 0.5), **settings)
    fit(clock, cheap, max_steps=20)
    assert set(range(0, 21, 2)) < set(steps(cheap.history)) and 0 < cheap.share <= 0.4


def test_a_base_that_is_trained_has_a_price_of_its_own(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe of it draws the floor too: of 26.7 seconds for probes, 8 had room and 4 have."""

    class Unlock(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            model: Any = pl_module.model
            model.base_trained = trainer.global_step >= 16

    clock = Clock(monkeypatch)
    settings = {"items": 2, "every": 2, "gain_every": 1, "adaptive": False, "budget": 0.4}
    watched = Probe(Likeness(), Slow(clock, 3.0), **settings)
    fit(clock, watched, Unlock(), max_steps=40)
    assert steps(watched.history) == [0, 6, 12, 18, 24, 32, 40], "18 is measured"


@pytest.mark.parametrize("budget", [0.0, 1.0, 10.0])
def test_a_budget_that_is_no_share_is_refused(budget: float) -> None:
    with pytest.raises(InputError, match="callback.probe.budget"):
        probe(budget=budget)


def test_a_finished_run_has_nothing_left_to_draw(fit: Fit, tmp_path: Path) -> None:
    saved = tmp_path / "saved.ckpt"
    fit(probe(every=2), SaveAt(3, saved), max_steps=3)
    sampler = CarelessDDIM(steps=2)
    again = probe(every=2, sampler=sampler)
    fit(again, max_steps=3, ckpt_path=saved)
    assert steps(again.history) == [0, 2, 3]
    assert not hasattr(sampler, "calls")


def test_a_run_that_ends_by_epochs_is_probed_at_its_end(fit: Fit) -> None:
    watched = probe(every=50, gain_every=50)
    fit(watched, max_epochs=1, limit_train_batches=3)
    assert steps(watched.history) == [0, 3] and steps(watched.gains) == [0, 3]


def test_who_interrupts_does_not_wait_for_a_probe_and_the_resumed_run_makes_it_up(fit: Fit, tmp_path: Path) -> None:
    class Asks(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == 1:
                interrupt.interrupted = True

    saved = tmp_path / "saved.ckpt"
    interrupt = Interrupt()
    stopped = probe(gain_every=2)
    _, trainer = fit(Asks(), interrupt, stopped, SaveAt(2, saved), max_steps=4)
    assert trainer.global_step == 2 and steps(stopped.history) == [0]
    resumed = probe(gain_every=2)
    fit(resumed, max_steps=3, ckpt_path=saved)
    assert steps(resumed.history) == [0, 2, 3]


def test_a_line_is_printed_for_each_probe(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    watched = probe()
    fit(watched, max_steps=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("probe")]
    last, floor, ceiling = watched.history[-1], watched.floor, watched.ceiling
    assert floor is not None and ceiling is not None
    assert lines[-1] == (
        f"probe at step 2: control fidelity {last.calibrated:.2f} calibrated (raw {last.raw:.2f}, "
        f"floor {floor.raw:.2f}, ceiling {ceiling.raw:.2f}), control gain {watched.gains[-1].gain:.3f}"
    )
    assert len(lines) == 2


def test_only_rank_zero_probes(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    watched = probe()
    fit(watched, max_steps=2)
    assert watched.history == watched.gains == []
    assert not (tmp_path / "run" / "samples").exists()


def test_a_checkpoint_that_calls_the_published_number_exact_goes_on() -> None:
    watched = probe()
    watched.history, watched.floor = [ProbeRecord(2, 0.5, 0.25, 0.1)], Score(0.1, 0.01)
    saved = watched.state_dict()
    for record in (*saved["history"], saved["floor"]):
        record["exact"] = record.pop("published")
    resumed = probe()
    resumed.load_state_dict(saved)
    assert resumed.history == watched.history and resumed.floor == watched.floor
