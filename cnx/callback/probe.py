"""The convergence probe: does the model obey the control yet?"""

import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from cnx.callback.bench import Bench, Probed, Score
from cnx.callback.ema import averaged
from cnx.callback.interrupt import was_interrupted
from cnx.callback.length import steps_in_all
from cnx.callback.spacing import Cost, Spacing
from cnx.callback.wandb import Wandb
from cnx.condition import Condition, Given
from cnx.data.module import HeldOut
from cnx.errors import InputError, check_whole
from cnx.metric import Convergence, calibrate, find_convergence, is_degenerate
from cnx.model.sharding import put_together
from cnx.report import sample_grid, save_image
from cnx.sampler import DDIM


@dataclass(frozen=True)
class ProbeRecord:
    """One probe: the optimizer step, fidelity as in `Score`, and the raw one calibrated (`cnx.metric.calibrate`).

    `floor` is the raw fidelity at strength 0 that it was calibrated with: another at each probe while the base is
    trained. None in checkpoints of before it was kept. `parts` is raw, published and calibrated of each of several
    conditions.
    """

    step: int
    raw: float
    published: float
    calibrated: float
    items: tuple[float, ...] = ()
    floor: float | None = None
    parts: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class GainRecord:
    """Control gain at an optimizer step: 1 - loss(with control) / loss(strength 0)."""

    step: int
    gain: float


class Probe(Callback):
    """Samples the same held-out items with the same noise again and again, and measures how well they obey their maps.

    A probe is made at step 0, at every `every`-th optimizer step, where control gain rises, and after the last step
    (not after an interrupted run: that goes on later); `Spacing` says exactly when, and keeps it within `budget`. Every
    `gain_every` steps control gain is measured on those items, each at its own fixed t and eps. The floor (samples at
    strength 0), the ceiling (the VAE's reconstructions) and the loss without control are measured once, at the start:
    they hold as long as the base is locked. Once it is trained, the floor is drawn again for each probe, whose record
    has it, and the loss without control for each gain.

    Training is not disturbed: the global random state and every module's mode are afterwards what they were, so a run
    with probes learns the same weights as one without. Only the process of rank zero probes.

    The budget is one of time, and time differs from one run to the next. So what a probe costs in optimizer steps is
    measured once, on the first steps and those after a phase has unlocked the base, and kept in checkpoints. From then
    on the steps that are probed follow from the curve of control gain and the length of the run alone, and a resumed
    run makes the probes that it would have made uninterrupted. Two runs with one configuration learn the same weights,
    but one may have a probe more than the other; with `budget: null` no time is measured, and they have the same.

    Writes to `samples/` in the run folder (`trainer.default_root_dir`): `heldout.npz` (control, target, reconstruction,
    floor: UInt8 "n H W 3", control 3 channels for each condition; prompts; index), and at each probe `step_000400.png`,
    `step_000400.npz` (samples: UInt8 "n H W 3") and `probe.json` (floor, ceiling, every probe and gain so far). Logs
    `control/fidelity` (calibrated), `control/fidelity_raw`, `control/fidelity_published` and `control/gain` to all
    loggers, and `control/fidelity_<condition>` (calibrated) of each of several conditions; to wandb the grid and a
    table of the items too, and an alert at the probe that shows convergence.

    Args:
        condition: judges samples against control maps.
        sampler: draws them.
        items: how many held-out items.
        every: optimizer steps between regular probes.
        gain_every: optimizer steps between measurements of control gain.
        adaptive: whether there are probes between the regular ones, where control gain rises.
        budget: the share of the time of training that probes and gains may take, beside the first and the last probe
            and what is measured once, in (0, 1); null is no limit.
        seed: of the noise, the timesteps and eps.
        grid_rows: items shown in the grid; all are measured.

    Attributes:
        history: the probes so far, those before a resume included; also `gains`, `floor` and `ceiling`.
        seconds: wall time spent in probes and gains by this process.
        share: of the time of training, resumes included, that went into probes and gains; known when it has ended.

    Raises:
        InputError: `budget` is not between 0 and 1, a number is not whole or below 1, or `condition` cannot judge.
    """

    def __init__(
        self,
        condition: Condition,
        sampler: DDIM,
        items: int = 16,
        every: int = 400,
        gain_every: int = 50,
        adaptive: bool = True,
        budget: float | None = 0.1,
        seed: int = 0,
        grid_rows: int = 8,
    ) -> None:
        if budget is not None and not 0 < budget < 1:
            raise InputError(f"callback.probe.budget={budget}: a share of time lies between 0 and 1; null is no limit")
        for key, value in (("items", items), ("every", every), ("gain_every", gain_every)):
            check_whole(f"callback.probe.{key}", value)
        if isinstance(condition, Given):
            raise InputError(
                "condition=none: a probe cannot say how well a drawing obeys such maps; give the maps' own condition,"
                " or ~callback.probe"
            )
        self.condition = condition
        self.sampler = sampler
        self.items = items
        self.spacing = Spacing(every, gain_every, adaptive, budget)
        self.seed = seed
        self.grid_rows = grid_rows
        self.history: list[ProbeRecord] = []
        self.gains: list[GainRecord] = []
        self.floor: Score | None = None
        self.ceiling: Score | None = None
        self.seconds = 0.0
        self._bench: Bench | None = None
        self._seen_step = -1
        self.share = 0.0
        self._began = time.monotonic()
        self._cost: Cost | None = None
        self._took = {"probe": 0.0, "gain": 0.0}  # seconds, of the first of each
        self._priced: bool | None = None  # whether the base was trained when that was measured
        self._earlier = {"watching": 0.0, "training": 0.0}  # seconds, of the sittings before this one
        self._said: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [asdict(record) for record in self.history],
            "gains": [asdict(record) for record in self.gains],
            "floor": self.floor and asdict(self.floor),
            "ceiling": self.ceiling and asdict(self.ceiling),
            "cost": self._cost and asdict(self._cost),
            "took": self._took,
            "priced": self._priced,
            "earlier": self._so_far(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [ProbeRecord(**_current(record)) for record in state_dict["history"]]
        self.gains = [GainRecord(**record) for record in state_dict["gains"]]
        self.floor = Score(**_current(state_dict["floor"])) if state_dict["floor"] else None
        self.ceiling = Score(**_current(state_dict["ceiling"])) if state_dict["ceiling"] else None
        self._cost = Cost(**state_dict["cost"]) if state_dict["cost"] else None
        self._took = state_dict["took"]
        self._priced = state_dict.get("priced")
        self._earlier = state_dict["earlier"]
        self.share = self._earlier["watching"] / self._earlier["training"]  # where nothing is left to train

    def convergence(self) -> Convergence:
        """When the model began to obey, by the probes so far; it must stay for a regular distance of probes."""
        return find_convergence(
            [record.step for record in self.history],
            [record.calibrated for record in self.history],
            span=self.spacing.every,
        )

    def _so_far(self) -> dict[str, float]:
        sitting = time.monotonic() - self._began
        return {"watching": self._earlier["watching"] + self.seconds, "training": self._earlier["training"] + sitting}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.max_steps == 0:  # Lightning starts no training then: only what the init draws is to be seen
            self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self._first, self._seen_step = time.monotonic(), None, trainer.global_step
        with put_together(pl_module):
            if trainer.is_global_zero:
                with self._aside(trainer, pl_module) as run:
                    self._prepare(trainer, run)
                self._watch(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        # The first process probes alone; of a model in pieces the others bring theirs wherever it may want to.
        may_want_to = self._regular(trainer) or trainer.global_step % self.spacing.gain_every == 0
        with put_together(pl_module) if may_want_to else nullcontext():
            if trainer.is_global_zero:
                self._watch(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if was_interrupted(trainer):
            return
        with put_together(pl_module):
            # A run that ends by epochs, by the clock or early: no step knew that it was the last.
            if trainer.is_global_zero and (not self.history or self.history[-1].step != trainer.global_step):
                self._measure(trainer, pl_module, gain_due=self._without_gain(trainer.global_step), probe_due=True)
        so_far = self._so_far()
        self.share = so_far["watching"] / so_far["training"]

    def _watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whatever is due at this optimizer step, unless it was done before the run was stopped and resumed."""
        step = trainer.global_step
        self._steps = steps_in_all(trainer) or None
        trained = cast(Probed, pl_module).model.base_trained
        if trained != self._priced:
            if self._priced is not None:  # a phase has unlocked it: each probe draws the floor, too
                self._cost, self._first, self._took = None, None, dict.fromkeys(self._took, 0.0)
            self._priced = trained
        # Someone who wants to stop does not wait for a probe; the resumed run makes it up.
        if was_interrupted(trainer):
            return
        # The last step's probe is made here, not in on_train_end, so that the last checkpoint knows of it.
        regular = self._regular(trainer)
        gain_due = (regular or step % self.spacing.gain_every == 0) and self._without_gain(step)
        if gain_due:
            self._measure_cost(step, pl_module)
        probe_due = regular and all(record.step != step for record in self.history)
        if probe_due and step not in (0, trainer.max_steps):
            probe_due = self._fits_in(step)
        self._measure(trainer, pl_module, gain_due, probe_due)
        if not probe_due and gain_due and self._asks_for_one(step):
            self._measure(trainer, pl_module, gain_due=False, probe_due=True)
        if self._first is None and step > 0:
            self._first = step, time.monotonic(), self.seconds

    def _measure(self, trainer: Trainer, pl_module: LightningModule, gain_due: bool, probe_due: bool) -> None:
        if gain_due:
            with self._aside(trainer, pl_module, "gain") as run:
                self._measure_gain(trainer, run)
        if probe_due:
            with self._aside(trainer, pl_module, "probe") as run:
                self._probe(trainer, run)

    def _regular(self, trainer: Trainer) -> bool:
        return trainer.global_step % self.spacing.every == 0 or trainer.global_step == trainer.max_steps

    def _without_gain(self, step: int) -> bool:
        return all(record.step != step for record in self.gains)

    def _measure_cost(self, step: int, pl_module: LightningModule) -> None:
        """Once: how long watching takes, in optimizer steps, of which this sitting has made some."""
        if self._cost or self.spacing.budget is None or self._first is None or not self._took["probe"]:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        first_step, began, watched = self._first
        seconds = (time.monotonic() - began - (self.seconds - watched)) / (step - first_step)
        self._cost = Cost(**{what: took / seconds for what, took in self._took.items()})

    def _horizon(self, step: int) -> int:
        """The optimizer steps that the budget is reckoned over: the run's, or those so far if nothing bounds it."""
        return step + 1 if self._steps is None else self._steps

    def _fits_in(self, step: int) -> bool:
        horizon = self._horizon(step)
        stride = self.spacing.stride(horizon, self._cost)
        if step % stride == 0:
            return True
        instead = f"every {stride:,}" if stride < horizon else "the first and the last"
        self._say_once(f"no probe at every {self.spacing.every:,} steps, but at {instead}: {self._price()}")
        return False

    def _asks_for_one(self, step: int) -> bool:
        assert self.floor is not None and self.ceiling is not None
        if is_degenerate(self.floor.raw, self.ceiling.raw):
            return False  # fidelity is 0 whatever happens: there is no rise to bracket
        probed = [record.step for record in self.history]
        if not self.spacing.asks_for_one_between({record.step: record.gain for record in self.gains}, probed):
            return False
        if self.spacing.affords_one_between(self._horizon(step), self._cost, probed):
            return True
        self._say_once(f"no more probes between the regular ones: {self._price()}")
        return False

    def _price(self) -> str:
        assert self._cost is not None and self.spacing.budget is not None
        return (
            f"more would take above {self.spacing.budget:.0%} of the run's time, "
            f"since a probe takes that of {self._cost.probe:.1f} steps"
        )

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            rich.get_console().print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def _aside(
        self, trainer: Trainer, pl_module: LightningModule, what: Literal["probe", "gain"] | None = None
    ) -> Iterator[Probed]:
        """The model in eval mode under training's autocast, leaving no trace in it or in the random state."""
        run = cast(Probed, pl_module)
        training = [module for module in run.model.modules() if module.training]
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # what is still under way is time of training
        start = time.monotonic()
        with isolate_rng(), torch.no_grad(), trainer.precision_plugin.forward_context(), averaged(trainer, pl_module):
            run.model.eval()
            try:
                yield run
            finally:
                for module in training:
                    module.training = True  # not .train(): a model may keep its base in eval mode
        took = time.monotonic() - start
        self.seconds += took
        if what:
            self._took[what] = self._took[what] or took

    def _prepare(self, trainer: Trainer, run: Probed) -> None:
        heldout: HeldOut = cast(Any, trainer).datamodule.heldout(self.items)
        self._bench = bench = Bench(run, heldout, self.condition, self.sampler, self.seed)
        file = self._folder(trainer) / "heldout.npz"
        if self.floor is None or self.ceiling is None or not file.exists():
            floor = bench.draw(run, strength=0.0)
            self.floor, self.ceiling = bench.score(floor), bench.score(bench.reconstruction)
            save_arrays(
                file,
                control=bench.control,
                target=bench.target,
                reconstruction=bench.reconstruction,
                floor=floor,
                prompts=np.array(heldout.prompts, dtype=np.str_),
                index=np.array(heldout.index),
            )

    def _probe(self, trainer: Trainer, run: Probed) -> None:
        bench, floor, ceiling = self._bench, self.floor, self.ceiling
        assert bench is not None and floor is not None and ceiling is not None
        step = trainer.global_step
        if run.model.base_trained:
            self.floor = floor = bench.score(bench.draw(run, strength=0.0))
        samples = bench.draw(run)
        score = bench.score(samples)
        calibrated = calibrate(score.raw, floor.raw, ceiling.raw)
        converged_before = self.convergence().step
        parts = {
            name: {**own, "calibrated": calibrate(own["raw"], floor.parts[name]["raw"], ceiling.parts[name]["raw"])}
            for name, own in score.parts.items()
        }
        self.history.append(ProbeRecord(step, score.raw, score.published, calibrated, score.items, floor.raw, parts))

        folder = self._folder(trainer)
        line = (
            f"probe at step {step}: control fidelity {calibrated:z.2f} calibrated "
            f"(raw {score.raw:z.2f}, floor {floor.raw:z.2f}, ceiling {ceiling.raw:z.2f})"
        )
        line += "".join(f", {name} {own['calibrated']:z.2f}" for name, own in parts.items())
        gain = next((record.gain for record in self.gains if record.step == step), None)
        if gain is not None:
            line += f", control gain {gain:z.3f}"
        rows = slice(self.grid_rows)
        grid = sample_grid(
            bench.control[rows],
            bench.target[rows],
            bench.reconstruction[rows],
            samples[rows],
            bench.heldout.prompts[rows],
            title=f"step {step:,}: calibrated control fidelity {calibrated:z.2f}",
        )
        save_arrays(folder / f"step_{step:06d}.npz", samples=samples)
        save_image(grid, folder / f"step_{step:06d}.png")
        self._save_summary(folder / "probe.json")
        row = {"fidelity": calibrated, "fidelity_raw": score.raw, "fidelity_published": score.published}
        row |= {f"fidelity_{name}": own["calibrated"] for name, own in parts.items()}
        _log(trainer, run, {f"control/{name}": value for name, value in row.items()})
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                heldout = bench.heldout
                logger.log_samples(
                    run.clocks(), grid, line, heldout.index, heldout.prompts, bench.control, samples, score.items
                )
                if converged_before is None and (converged := self.convergence().step) is not None:
                    logger.announce(converged, line)
        rich.get_console().print(line, highlight=False, markup=False, soft_wrap=True)

    def _measure_gain(self, trainer: Trainer, run: Probed) -> None:
        bench = self._bench
        assert bench is not None
        without = bench.loss_without
        if run.model.base_trained:
            without = bench.loss(run, strength=0.0)
        gain = 1 - bench.loss(run) / without
        self.gains.append(GainRecord(trainer.global_step, gain))
        _log(trainer, run, {"control/gain": gain})

    def _folder(self, trainer: Trainer) -> Path:
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _save_summary(self, path: Path) -> None:
        floor, ceiling = self.floor, self.ceiling
        assert floor is not None and ceiling is not None
        summary = {
            "every": self.spacing.every,
            "floor": asdict(floor),
            "ceiling": asdict(ceiling),
            "degenerate": is_degenerate(floor.raw, ceiling.raw),
            "probes": [asdict(record) for record in self.history],
            "gains": [asdict(record) for record in self.gains],
        }
        replace_file(path, (json.dumps(summary, indent=1) + "\n").encode())


def _current(record: dict[str, Any]) -> dict[str, Any]:
    """A score as it is named now; checkpoints once called the published number `exact`."""
    return {"published" if name == "exact" else name: value for name, value in record.items()}


def _log(trainer: Trainer, run: Probed, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, **run.clocks()}, step=trainer.global_step)


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays so that `path` holds the whole of them or what was there before."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(Any, arrays))
    replace_file(path, buffer.getvalue())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that `path` holds the whole of it or what was there before."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
