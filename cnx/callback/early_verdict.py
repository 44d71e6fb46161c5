"""Ends a run whose outcome is known, where that is asked for."""

from collections.abc import Sequence
from typing import Any

import rich
from lightning.pytorch import Callback, LightningModule, Trainer

from cnx.callback.length import steps_in_all
from cnx.callback.phases import Phases
from cnx.callback.probe import Probe
from cnx.errors import InputError, check_whole
from cnx.metric import find_plateau


class EarlyVerdict(Callback):
    """Ends a run at a probe whose verdict is a reason to: the run is finished then, as it is after its last step.

    What a phase changes may change the outcome: none is ended before a phase that is to begin at a step, or at the
    convergence that it shows, and after one the verdict is on what came `since`.

    Attributes:
        reason: why the run was ended, in words; None if it was not.
        since: the optimizer step at which the last phase began; 0 without one.
        holds: whether a verdict that a checkpoint has ends the run again. Not if someone goes on with a finished one.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.since = 0
        self.holds = True
        self._judged = 0

    def judge(self, probe: Probe) -> str | None:
        """Why a run with these probes should end now, or None."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"judged": self._judged, "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._judged = state_dict["judged"]
        self.reason = state_dict.get("reason") if self.holds else None

    def find_probe(self, callbacks: Sequence[Callback]) -> Probe:
        """The probe that stands before it among a run's callbacks. Raises InputError if there is none."""
        before = callbacks[: callbacks.index(self)]
        probe = next((callback for callback in before if isinstance(callback, Probe)), None)
        if probe is None:
            raise InputError(f"stop={type(self).__name__.lower()}: it goes by the probes; configure callback.probe too")
        return probe

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        self._probe = self.find_probe(callbacks)
        self._phases = next((callback for callback in callbacks if isinstance(callback, Phases)), Phases())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._consider(trainer)  # a probe that an interrupted run had put off

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._consider(trainer)

    def _consider(self, trainer: Trainer) -> None:
        # The count is in checkpoints: who goes on with a run that was ended is judged by the probes to come.
        if len(self._probe.history) > self._judged and trainer.global_step != trainer.max_steps:
            self._judged = len(self._probe.history)
            self.since = max((begun.step for begun in self._phases.begun), default=0)
            converged = self._probe.convergence().step is not None
            self.reason = None if self._phases.awaited(trainer, converged) else self.judge(self._probe)
        # Only the process of rank zero probes; all end together.
        if trainer.strategy.reduce_boolean_decision(self.reason is not None, all=False):
            trainer.should_stop = True


class Flat(EarlyVerdict):
    """The model has converged, and its fidelity no longer rises.

    It no longer rises if the best calibrated fidelity of the last `probes` regular probes, of one phase, is not above
    the best of all probes before them by more than `least`.
    """

    def __init__(self, probes: int = 4, least: float = 0.02) -> None:
        super().__init__()
        check_whole("callback.flat.probes", probes)
        self.probes, self.least = probes, least

    def judge(self, probe: Probe) -> str | None:
        converged = probe.convergence().step
        regular = [record.step for record in probe.history if record.step % probe.spacing.every == 0]
        if converged is None or len(regular) <= self.probes:
            return None
        since = regular[-self.probes]
        if since < self.since:
            return None
        before = max(record.calibrated for record in probe.history if record.step < since)
        best = max(record.calibrated for record in probe.history if record.step >= since)
        if best > before + self.least:
            return None
        return f"flat: converged at step {converged:,}, and fidelity has not risen by {self.least} since {since:,}"


class Hopeless(EarlyVerdict):
    """Control has not begun after `after` optimizer steps, or as many after the last phase began.

    It has not if control gain has lain on one plateau (`cnx.metric.find_plateau`) for that long, that plateau lies
    below `most`, and calibrated fidelity is below 0.1 at the last probe. A random base, whose fidelity means nothing,
    is judged by control gain alone.
    """

    def __init__(self, after: int, most: float = 0.01) -> None:
        super().__init__()
        self.after, self.most = after, most

    def judge(self, probe: Probe) -> str | None:
        last = probe.history[-1]
        since = last.step - self.after
        plateau = find_plateau([record.gain for record in probe.gains if record.step >= since])
        begun = plateau.end is not None or plateau.level >= self.most or last.calibrated >= 0.1
        if since < self.since or begun:
            return None
        return f"hopeless: control gain is {plateau.level:z.3f} and flat after {last.step:,} steps"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        steps = steps_in_all(trainer)
        if steps is not None and steps <= self.after and trainer.is_global_zero:
            line = (
                f"stop=hopeless: judges after {self.after:,} steps, and the run ends at {steps:,}; for a verdict give"
                " callback.hopeless.after=<fewer>"
            )
            rich.get_console().print(line, highlight=False, markup=False, soft_wrap=True)
