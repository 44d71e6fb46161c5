from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from cnx.callback import EarlyVerdict, Flat, Hopeless, Interrupt, Probe, ProbeRecord, was_interrupted
from cnx.callback.probe import GainRecord
from cnx.condition import Agreement
from cnx.errors import InputError
from cnx.sampler import DDIM

Fit = Callable[..., tuple[Any, Trainer]]


def probed(calibrated: list[float], gains: list[float] | None = None, every: int = 100) -> Probe:
    """A probe that has seen these curves."""
    probe = Probe(condition=None, sampler=DDIM(), every=every)  # pyright: ignore[reportArgumentType]
    probe.history = [ProbeRecord(i * every, 0.0, 0.0, value) for i, value in enumerate(calibrated)]
    probe.gains = [GainRecord(i * every, gain) for i, gain in enumerate(gains or [0.0] * len(calibrated))]
    return probe


RISEN = [0.0, 0.1, 0.6, 0.7, 0.8]


def test_a_run_is_flat_when_it_has_converged_and_four_probes_brought_nothing() -> None:
    assert Flat().judge(probed(RISEN)) is None
    assert Flat().judge(probed([*RISEN, 0.81, 0.8, 0.79])) is None, "three probes are too few"
    reason = Flat().judge(probed([*RISEN, 0.81, 0.8, 0.79, 0.8]))
    assert reason is not None and "converged at step 200" in reason and "since 500" in reason
    assert Flat().judge(probed([*RISEN, 0.81, 0.8, 0.79, 0.83])) is None, "a new best"
    assert Flat(least=0.1).judge(probed([*RISEN, 0.81, 0.8, 0.79, 0.83])) is not None
    assert Flat(probes=2).judge(probed([*RISEN, 0.81, 0.8])) is not None


def test_a_run_that_has_not_converged_is_not_flat() -> None:
    assert Flat().judge(probed([0.0, *[0.45] * 12])) is None
    assert Flat().judge(probed([0.0] * 12)) is None


def test_probes_between_are_not_counted_as_time() -> None:
    probe = probed([*RISEN, 0.81])
    probe.history += [ProbeRecord(step, 0.0, 0.0, 0.8) for step in (510, 520, 530, 540)]
    assert Flat().judge(probe) is None


def test_a_run_is_hopeless_when_control_gain_stays_flat_near_0_for_long() -> None:
    still = [0.001 * (-1) ** i for i in range(11)]
    assert Hopeless(after=1000).judge(probed([0.0] * 10, still[:10])) is None, "step 900"
    assert "after 1,000 steps" in (Hopeless(after=1000).judge(probed([0.0] * 11, still)) or "")
    assert Hopeless(after=1000).judge(probed([0.0] * 11, [*still[:9], 0.03, 0.05])) is None, "it has begun"
    assert Hopeless(after=1000).judge(probed([0.0] * 11, [gain + 0.3 for gain in still])) is None, (
        "it came with control"
    )
    assert Hopeless(after=1000).judge(probed([*[0.0] * 10, 0.2], still)) is None, "it obeys all the same"
    outlier = [0.0, 0.0, 0.0, 0.0, 0.0, 0.2, *still]
    assert Hopeless(after=1000).judge(probed([0.0] * 12, outlier[:12])) is None, "not yet for that long"
    for curve in (outlier, [-0.3, -0.2, -0.1, -0.05, -0.02, 0.0, *still]):  # harm that heals
        assert Hopeless(after=1000).judge(probed([0.0] * 17, curve)) is not None


def test_a_run_that_ends_before_it_can_be_hopeless_says_so(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(probe(), Hopeless(after=4), max_steps=4)
    assert "stop=hopeless: judges after 4 steps, and the run ends at 4; for a verdict" in capsys.readouterr().out
    fit(probe(), Hopeless(after=3), max_steps=4)
    assert "stop=hopeless" not in capsys.readouterr().out


class Likeness:
    def judge(self, drawn: Any, wanted: Any) -> Agreement:
        return Agreement(0.5, 0.5)


class AtStep(EarlyVerdict):
    """A verdict on the probe at one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def judge(self, probe: Probe) -> str | None:
        return "enough" if probe.history[-1].step == self.step else None


def probe() -> Probe:
    return Probe(Likeness(), DDIM(steps=1), items=1, every=2, gain_every=2, budget=None)


class SaveAtTheEnd(Callback):
    """Saves where the run's checkpoint does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.should_stop:
            trainer.save_checkpoint(self.path)


def test_a_verdict_ends_the_run_at_its_probe_as_a_finished_one(fit: Fit, tmp_path: Path) -> None:
    watched, verdict, interrupt, saved = probe(), AtStep(4), Interrupt(), tmp_path / "saved.ckpt"
    _, trainer = fit(interrupt, watched, verdict, SaveAtTheEnd(saved), max_steps=9)
    assert (trainer.global_step, verdict.reason) == (4, "enough")
    assert not was_interrupted(trainer) and [record.step for record in watched.history] == [0, 2, 4]
    # Killed before it was summed up, the run is ended again; a finished one goes on, judged at probes to come.
    again, more = AtStep(4), AtStep(4)
    _, trainer = fit(probe(), again, max_steps=7, ckpt_path=saved)
    assert (trainer.global_step, again.reason) == (4, "enough")
    more.holds = False
    _, trainer = fit(probe(), more, max_steps=7, ckpt_path=saved)
    assert (trainer.global_step, more.reason) == (7, None)


def test_a_verdict_at_the_last_step_stops_nothing(fit: Fit) -> None:
    verdict = AtStep(4)
    _, trainer = fit(probe(), verdict, max_steps=4)
    assert (trainer.global_step, verdict.reason) == (4, None)


def test_without_a_probe_before_it_a_verdict_has_nothing_to_go_by(fit: Fit) -> None:
    with pytest.raises(InputError, match="stop=flat"):
        fit(Flat(), max_steps=1)
    with pytest.raises(InputError, match="stop=flat"):
        fit(Flat(), probe(), max_steps=1)
