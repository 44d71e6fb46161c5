import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from cnx.callback import EMA, Interrupt, Probe, PromptAblation
from cnx.condition import Agreement, Condition
from cnx.errors import InputError
from cnx.metric import calibrate
from cnx.report.prompts import read_prompt_ablation
from cnx.report.saved import SavedRun
from cnx.sampler import DDIM

Fit = Callable[..., tuple[Any, Trainer]]
MODES = ["none", "conflicting", "perfect"]  # an insufficient prompt needs a text encoder, which the toy has not


class Likeness(Condition):
    """Fidelity is a smooth function of the pictures."""

    white = licence = measure = "likeness"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return image

    def compare(self, drawn: np.ndarray, wanted: np.ndarray) -> Agreement:
        return Agreement(float(1 - np.abs(drawn.astype(float) - wanted).mean() / 255), 0.0)


def ablation(modes: str | None = None) -> PromptAblation:
    return PromptAblation(Likeness(), DDIM(steps=2, guidance=2.0, chunk=2), "fine", items=3, prompt_mode=modes or MODES)


def test_each_kind_of_prompt_is_drawn_from_the_probes_noise_and_has_its_own_floor(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = Probe(Likeness(), DDIM(steps=2, guidance=2.0, chunk=2), items=3, every=9, gain_every=9)
    measured = ablation()
    toy, _ = fit(probe, measured, max_steps=3)
    folder = tmp_path / "run"
    saved = json.loads((folder / "prompts.json").read_text())
    results = saved["prompt_modes"]
    assert list(results) == MODES and saved["optimizer_steps"] == 3 and saved["items"] == 3
    fidelity = {mode: result["control_fidelity"] for mode, result in results.items()}
    last, floor, ceiling = probe.history[-1], probe.floor, probe.ceiling
    assert floor is not None and ceiling is not None
    own = [fidelity["perfect"][name] for name in ("raw", "floor", "ceiling")]
    assert own == pytest.approx([last.raw, floor.raw, ceiling.raw], abs=1e-3)
    assert len({fidelity[mode]["floor"] for mode in MODES}) == 3, "the prompt shows without control too"
    assert len({fidelity[mode]["ceiling"] for mode in MODES}) == 1
    for mode in MODES:
        scores = [fidelity[mode][name] for name in ("raw", "floor", "ceiling")]
        assert fidelity[mode]["calibrated"] == calibrate(*scores) == measured.fidelity[mode]
        assert np.mean(results[mode]["items"]) == pytest.approx(fidelity[mode]["raw"])
    assert results["none"]["prompts"] == ["", "", ""]
    assert results["conflicting"]["prompts"] == ["picture 1", "picture 2", "picture 0"]
    assert f"{measured.fidelity['conflicting']:z.2f} conflicting" in capsys.readouterr().out.splitlines()[-1]

    read = read_prompt_ablation(SavedRun(folder))
    assert read is not None and (folder / "prompts.png").is_file()
    judged = [Likeness().judge(*pair).fidelity for pair in zip(read.drawn["none"], read.control, strict=True)]
    assert judged == pytest.approx(results["none"]["items"])
    (folder / "summary.json").write_text(json.dumps({"optimizer_steps": 9}))
    assert read_prompt_ablation(SavedRun(folder)) is None, "the run has gone on since"


def test_an_interrupted_run_is_not_measured_and_one_that_only_samples_is(fit: Fit, tmp_path: Path) -> None:
    class Asks(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            interrupt.interrupted = True

    interrupt, stopped, sampled = Interrupt(), ablation(), ablation("perfect")
    fit(Asks(), interrupt, stopped, name="stopped", max_steps=4)
    assert not stopped.fidelity and not (tmp_path / "stopped" / "prompts.json").exists()
    fit(sampled, name="sampled", max_steps=0)
    assert list(sampled.fidelity) == ["perfect"] and sampled.seconds > 0


def test_prompts_that_cannot_conflict_are_found_out_before_the_run() -> None:
    ablation().check(["a bird", "a bird", "a cat"])
    with pytest.raises(InputError, match="prompt_mode=conflicting"):
        ablation().check(["a bird", "a bird", "a bird", "a cat"])  # the fourth is none of the three that are drawn
    ablation("perfect").check(["a bird"])


def test_what_is_measured_is_the_average_where_one_is_kept(fit: Fit, tmp_path: Path) -> None:
    raw = {}
    for name, average in (("plain", []), ("averaged", [EMA()])):
        probe = Probe(Likeness(), DDIM(steps=2, guidance=2.0, chunk=2), items=3, every=9, gain_every=9)
        fit(*average, probe, ablation("perfect"), name=name, max_steps=18)
        saved = json.loads((tmp_path / name / "prompts.json").read_text())
        raw[name] = probe.history[-1].raw
        assert saved["prompt_modes"]["perfect"]["control_fidelity"]["raw"] == pytest.approx(raw[name], abs=1e-6)
    assert abs(raw["plain"] - raw["averaged"]) > 4e-6
