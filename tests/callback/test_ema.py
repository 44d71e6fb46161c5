"""The running average of what is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cnx.callback import EMA, Probe, averaged
from cnx.condition import Agreement
from cnx.errors import InputError
from cnx.sampler import DDIM

Fit = Callable[..., tuple[Any, Trainer]]


class Follow(Callback):
    """The trained weights after each micro-batch, and a checkpoint at a step."""

    def __init__(self, save_at: int = 0, path: Path | None = None) -> None:
        self.weights: list[tuple[int, dict[str, Tensor]]] = []
        self.save_at, self.path = save_at, path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        trained = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
        self.weights.append((trainer.global_step, trained))
        if trainer.global_step == self.save_at and self.path is not None and not self.path.exists():
            trainer.save_checkpoint(self.path)


def test_the_average_moves_once_an_optimizer_step_faster_at_first_and_training_does_not_notice(fit: Fit) -> None:
    ema, follow = EMA(decay=0.2), Follow()
    toy, _ = fit(ema, follow, max_steps=4, accumulate_grad_batches=2)
    plain, _ = fit(max_steps=4, accumulate_grad_batches=2)
    assert all(torch.equal(a, b) for a, b in zip(toy.parameters(), plain.parameters(), strict=True))

    by_step = dict(follow.weights)  # the last of each step
    name = "model.branch.conv_in.weight"
    start = {step: weights for step, weights in follow.weights[:1]}[0][name]  # of the first micro-batch, no step yet
    wanted = start
    for step in (1, 2, 3, 4):
        decay = min(0.2, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * by_step[step][name]
    torch.testing.assert_close(ema.average[name], wanted)
    assert {key.split(".")[1] for key in ema.average} == {"branch"}, "what is locked is not averaged"


def test_a_resumed_average_is_the_uninterrupted_one_to_the_bit(fit: Fit, tmp_path: Path) -> None:
    whole, resumed = EMA(0.9), EMA(0.9)
    fit(whole, Follow(3, tmp_path / "at.ckpt"), max_steps=3)
    torch.manual_seed(0)
    stored = torch.load(tmp_path / "at.ckpt", weights_only=False)["callbacks"]
    resumed.load_state_dict(next(state for key, state in stored.items() if key.startswith("EMA")))
    assert resumed._steps == 3 and resumed.average.keys() == whole.average.keys()
    assert all(torch.equal(resumed.average[name], whole.average[name]) for name in whole.average)


def test_the_average_stands_in_for_the_weights_and_gives_them_back_to_the_bit(fit: Fit) -> None:
    ema = EMA(0.9)
    toy, trainer = fit(ema, max_steps=3)
    before = {name: p.detach().clone() for name, p in toy.named_parameters()}
    average = {name: tensor.clone() for name, tensor in ema.average.items()}
    with averaged(trainer, toy):
        inside = dict(toy.named_parameters())
        assert all(torch.equal(inside[name], average[name]) for name in average)
        assert any(not torch.equal(inside[name], before[name]) for name in average)
    assert all(torch.equal(p, before[name]) for name, p in toy.named_parameters())
    assert all(torch.equal(ema.average[name], average[name]) for name in average)


def test_a_probe_draws_with_the_average_of_its_own_step(fit: Fit) -> None:
    seen: list[Tensor] = []

    class Watch(DDIM):
        def __call__(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(model.branch.conv_in.weight.detach().clone())
            return super().__call__(model, *args, **kwargs)

    class Likeness:
        def judge(self, drawn: Any, wanted: Any) -> Agreement:
            return Agreement(0.5, 0.5)

    ema = EMA(0.9)
    probe = Probe(Likeness(), Watch(steps=1), items=1, every=2, gain_every=2, budget=None, adaptive=False)
    toy, _ = fit(ema, probe, max_steps=2)
    assert torch.equal(seen[-1], ema.average["model.branch.conv_in.weight"])
    assert not torch.equal(seen[-1], toy.model.branch.conv_in.weight)


def test_a_decay_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"callback.ema.decay=1"):
        EMA(1.0)
