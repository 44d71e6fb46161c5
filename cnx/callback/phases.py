"""A run that changes under way."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from cnx.callback.ema import EMA
from cnx.callback.length import steps_in_all
from cnx.callback.probe import Probe
from cnx.errors import InputError
from cnx.model import Controlled

CONVERGED = "converged"
# What each key of a phase may hold.
VALUES = {
    "when": ("an optimizer step, or converged", lambda v: v == CONVERGED or _whole(v, 0)),
    "links": ("all or mid", lambda v: v in ("all", "mid")),
    "unlock": ("decoder, all or null", lambda v: v in ("decoder", "all", None)),
    "lr": ("a learning rate above 0", lambda v: type(v) in (int, float) and 0 < v < math.inf),
    "accumulate_grad_batches": ("a number of micro-batches", lambda v: _whole(v, 1)),
    "stop_after": ("a number of optimizer steps", lambda v: _whole(v, 1)),
}


class Phased(Protocol):
    """What the callback asks of the LightningModule whose run it changes."""

    model: Controlled

    def clocks(self) -> dict[str, int]:
        """optimizer_step, micro_batch, samples_seen."""
        ...

    def extend_optimizer(self) -> None:
        """Hand the optimizer what the model has begun to train."""
        ...


@dataclass(frozen=True)
class Begun:
    """A phase that has begun: its number in the list, from 1; the optimizer step it began at; when and what it sets."""

    phase: int
    step: int
    when: int | str
    changed: dict[str, Any]


class Phases(Callback):
    """Changes a run at optimizer steps that are named beforehand, or once it has converged.

    A phase is a mapping with `when`, an optimizer step or "converged" (the verdict of `Probe.convergence` on
    the probes so far), and any of these; what is not named stays as it is:

    - `links`: all, or mid (`Controlled.link`).
    - `unlock`: decoder, all, or null, which locks the base (`Controlled.unlock`). What begins to be trained does so at
      the phase's `lr`, else at the model's own for the base, else at the branch's.
    - `lr`: learning rate of everything that is trained.
    - `accumulate_grad_batches`: micro-batches in an optimizer step. They are counted from the epoch's beginning, so
      the first step after the change may hold fewer; it takes the mean of what it holds.
    - `stop_after`: the run ends that many optimizer steps after the phase began, if not sooner. Where `when` is a step
      the end is known from the first step on: a cooldown falls towards it, and the progress bar counts up to it.

    Each phase waits for its own moment alone; those of the same moment begin in the order of the list. Step n is the
    moment between the n-th update and the work on the next one, after the probe and before the checkpoint of step n. A
    phase that begins is printed, logged as `train/phase` (its number) with the three clocks, and written to
    `phases.json` in the run folder: a list of {phase, step, when, changed}. A resumed run keeps to the phases that it
    has begun.

    Args:
        phases: the phases; none does nothing.

    Raises:
        InputError: a key or a value that a phase cannot have.

    Attributes:
        begun: the phases that have begun, those before a resume included.
    """

    def __init__(self, phases: Sequence[Mapping[str, Any]] = ()) -> None:
        listed: Any = phases
        if not isinstance(listed, Sequence) or not all(isinstance(phase, Mapping) for phase in listed):
            raise InputError(f"phases={phases}: must be a list of mappings, 'phases=[{{when: 1000, lr: 1e-5}}]'")
        self.phases = [dict(phase) for phase in phases]
        for at, phase in enumerate(self.phases):
            unknown = sorted(phase.keys() - VALUES.keys())
            if unknown:
                raise InputError(f"phases[{at}].{unknown[0]}: no such key; there are {', '.join(VALUES)}")
            if "when" not in phase:
                raise InputError(f"phases[{at}]: when is missing; give an optimizer step, or converged")
            for key, value in phase.items():
                wanted, is_good = VALUES[key]
                if not is_good(value):
                    raise InputError(f"phases[{at}].{key}={value}: must be {wanted}")
        self.begun: list[Begun] = []
        self._step = -1

    @property
    def accumulations(self) -> list[int]:
        """What phases set the accumulation to."""
        return [phase["accumulate_grad_batches"] for phase in self.phases if "accumulate_grad_batches" in phase]

    def awaited(self, trainer: Trainer, converged: bool) -> bool:
        """Whether a phase is still to begin: at a step that the run reaches, or now, if it has `converged`."""
        end = steps_in_all(trainer) or math.inf
        due = any(phase["when"] == CONVERGED for _, phase in self._waiting())
        return (converged and due) or any(when < end for _, when, _ in self._at_steps())

    def _waiting(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The phases that have not begun, with their numbers."""
        begun = {begun.phase for begun in self.begun}
        yield from ((number, phase) for number, phase in enumerate(self.phases, start=1) if number not in begun)

    def _at_steps(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Those of them that wait for a step: number, step, phase."""
        yield from ((number, phase["when"], phase) for number, phase in self._waiting() if phase["when"] != CONVERGED)

    def check(self, probed: bool, checkpoint: Path | None = None, concluded: bool = True) -> None:
        """Find out before anything is written whether a run can have these phases.

        Raises InputError if one waits for convergence and nothing probes; or if the run that goes on from `checkpoint`
        has begun other phases, or was ended by one and `concluded`.
        """
        for at, phase in enumerate(self.phases):
            if phase["when"] == CONVERGED and not probed:
                raise InputError(f"phases[{at}].when=converged: no callback.probe says when; give an optimizer step")
        if checkpoint is None:
            return
        stored = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
        self.load_state_dict(stored["callbacks"].get(self.state_key, {"begun": []}))
        for begun in self.begun:
            phase = self.phases[begun.phase - 1] if begun.phase <= len(self.phases) else {}
            if _but_stop(phase) != _but_stop({"when": begun.when, **begun.changed}):
                raise InputError(
                    f"phases[{begun.phase - 1}]: began at step {begun.step} as"
                    f" {json.dumps({'when': begun.when, **begun.changed})}; leave it so, and add others after it"
                )
            if concluded and "stop_after" in phase and begun.step + phase["stop_after"] <= stored["global_step"]:
                raise InputError(
                    f"phases[{begun.phase - 1}].stop_after={phase['stop_after']}: has ended the run at step"
                    f" {stored['global_step']}; to go on, give phases= with a greater one, or without it"
                )

    def state_dict(self) -> dict[str, Any]:
        return {"begun": [asdict(begun) for begun in self.begun]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.begun = [Begun(**begun) for begun in state_dict["begun"]]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The checkpoint brings back the model's wiring and the optimizer; the trainer's own settings are ours. Other
        # callbacks go by them when training starts.
        for begun in self.begun:
            self._set_trainer(trainer, self.phases[begun.phase - 1], begun.step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for _, when, phase in self._at_steps():
            if "stop_after" in phase:
                _end_by(trainer, max(when, trainer.global_step) + phase["stop_after"])
        end = steps_in_all(trainer) or math.inf
        for number, when, _ in self._at_steps():
            if end <= when and trainer.is_global_zero:
                line = f"phase {number} is for step {when:,} and does not begin: the run ends at {end:,}"
                rich.get_console().print(line, highlight=False, markup=False, soft_wrap=True)
        if self.phases:
            self._write(trainer)  # without what a killed run had begun after its checkpoint
        self._watch(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step:
            self._watch(trainer, pl_module)

    def _watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = step = trainer.global_step
        if trainer.should_stop:
            return  # interrupted: the resumed run makes up the probe that was put off, and begins what comes after it
        for number, phase in self._waiting():
            # Nothing begins at the end of a run: asked for more steps, it begins when the run goes on.
            if step != trainer.max_steps and self._is_due(trainer, phase["when"]):
                self._begin(trainer, cast(Phased, pl_module), number)

    def _is_due(self, trainer: Trainer, when: int | str) -> bool:
        if when != CONVERGED:
            return trainer.global_step >= cast(int, when)
        probes = [callback for callback in trainer.callbacks if isinstance(callback, Probe)]  # pyright: ignore[reportAttributeAccessIssue]
        converged = any(probe.convergence().step is not None for probe in probes[:1])
        # Only the first process probes.
        return trainer.strategy.reduce_boolean_decision(converged, all=False)

    def _begin(self, trainer: Trainer, run: Phased, number: int) -> None:
        phase = self.phases[number - 1]
        step = trainer.global_step
        if "links" in phase:
            run.model.link(phase["links"])
        if "unlock" in phase:
            run.model.unlock(phase["unlock"])
        run.extend_optimizer()
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, EMA):
                callback.follow(trainer.lightning_module)  # by now, so that this step's checkpoint has it
        optimizer = trainer.optimizers[0]
        if "lr" in phase:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = phase["lr"]  # the latter is what a cooldown falls from
        # Lightning clears gradients at multiples of the accumulation, and what is locked now keeps none.
        optimizer.zero_grad()
        if isinstance(trainer.strategy, DDPStrategy) and ("links" in phase or "unlock" in phase):
            # It settled which gradients the processes share when it wrapped the model.
            trainer.strategy.model = trainer.lightning_module
            trainer.strategy.configure_ddp()
        self._set_trainer(trainer, phase, step)

        changed = {key: value for key, value in phase.items() if key != "when"}
        self.begun.append(Begun(number, step, phase["when"], changed))
        for logger in trainer.loggers:
            logger.log_metrics({"train/phase": number, **run.clocks()}, step=step)
        if trainer.is_global_zero:
            self._write(trainer)
            words = ", ".join(f"{key} {'null' if value is None else value}" for key, value in changed.items())
            because = " (converged)" if phase["when"] == CONVERGED else ""
            line = f"phase {number} at step {step:,}{because}: {words or 'no change'}"
            rich.get_console().print(line, highlight=False, markup=False, soft_wrap=True)

    def _set_trainer(self, trainer: Trainer, phase: Mapping[str, Any], step: int) -> None:
        if "accumulate_grad_batches" in phase:
            trainer.accumulate_grad_batches = phase["accumulate_grad_batches"]
        if "stop_after" in phase:
            _end_by(trainer, step + phase["stop_after"])

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        file = Path(trainer.default_root_dir) / "phases.json"
        part = file.with_name("phases.json.part")
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps([asdict(begun) for begun in self.begun], indent=1) + "\n", encoding="utf-8")
        os.replace(part, file)


def _end_by(trainer: Trainer, step: int) -> None:
    loop = trainer.fit_loop.epoch_loop
    loop.max_steps = step if loop.max_steps == -1 else min(loop.max_steps, step)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _but_stop(phase: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in phase.items() if key != "stop_after"}
