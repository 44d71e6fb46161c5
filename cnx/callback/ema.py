"""A running average of what is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cnx.errors import InputError


class EMA(Callback):
    """Keeps an exponential moving average of the trained weights: what probes draw with and what a run saves.

    After the n-th optimizer step the average moves by 1 - min(decay, (1 + n) / (10 + n)) of the way to the weights, so
    that it forgets its start (as diffusers' EMAModel with its warm-up has it). Only what is trained is averaged, in
    float32; what a phase begins to train is averaged from there on, and what a phase locks again stays as it is: the
    branch is trained against it from there on. Training itself goes on with the weights as they are, and a resumed
    run's average is the uninterrupted one's to the bit.

    It stands before the probe among the callbacks, so that a probe sees the average of its own step.

    Args:
        decay: in [0, 1).

    Raises:
        InputError: a decay outside of that range.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"callback.ema.decay={decay}: must be at least 0 and below 1")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self._steps = state_dict["average"], state_dict["steps"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.follow(pl_module)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:
            return  # a micro-batch inside an optimizer step
        self._steps = trainer.global_step
        trained = self.follow(pl_module)
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        averages = [self.average[name] for name in trained]
        torch._foreach_lerp_(averages, list(trained.values()), 1 - decay)

    def follow(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """What is trained now, each with an average beside it on its device: of what is new, the weight itself."""
        names = dict(pl_module.named_parameters())
        trained = {name: parameter.detach() for name, parameter in names.items() if parameter.requires_grad}
        self.average = {name: average for name, average in self.average.items() if name in trained}
        for name, parameter in trained.items():
            known = self.average.get(name)
            self.average[name] = parameter.clone() if known is None else known.to(parameter.device)
        return trained

    @contextmanager
    def in_place(self, pl_module: LightningModule) -> Iterator[None]:
        """The average in place of the weights, which come back afterwards to the bit."""
        self._swap(pl_module)
        try:
            yield
        finally:
            self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        weights = dict(pl_module.named_parameters())
        for name in self.average.keys() & weights.keys():  # links that a phase has taken away are at zero, unnamed
            average = self.average[name]
            kept = weights[name].clone()  # one at a time: no second copy of the whole
            weights[name].copy_(average)
            average.copy_(kept)


@contextmanager
def averaged(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """The weights that a run would save now: the average where one is kept, else those that are trained."""
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    found = next((callback for callback in callbacks if isinstance(callback, EMA)), None)
    if found is None:
        yield
        return
    with found.in_place(pl_module):
        yield
