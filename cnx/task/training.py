"""The training step."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from lightning import Callback, LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from cnx.callback import Probe, steps_in_all, was_interrupted
from cnx.data.module import Batch
from cnx.errors import InputError
from cnx.model import Controlled
from cnx.model.sharding import is_sharded, shard
from cnx.objective import Denoise
from cnx.schedule import Schedule

LOST = 10  # micro-batches without one loss that is a number, after which a run is lost
REMEDY = (
    "lower optimizer.lr, or give optimizer.eps, trainer.gradient_clip_val or trainer.precision=32-true, and start a"
    " new run"
)


class Training(LightningModule):
    """A control branch in training: draw noise and timesteps, drop prompts, compare (ControlNet, section 3.3).

    `optimizer` makes an optimizer of parameters; `schedule` is its learning rate's; `noise_offset` is the weight of
    noise that a whole channel of a picture shares; `began` is when the run began, by time.perf_counter(), and None is
    now. Each micro-batch has randomness of its own, a function of seed and micro-batch number, so that a resumed run
    draws what the uninterrupted one would have drawn. All processes that train together draw it for all, and each
    takes what is its own: n of them do what one with n times the batch does.
    """

    def __init__(
        self,
        model: Controlled,
        objective: Denoise,
        optimizer: Callable[..., Optimizer],
        null_text: Float[Tensor, "1 n d"],
        prompt_dropout: float,
        seed: int,
        log_every_n_steps: int,
        schedule: Schedule = Schedule(),  # noqa: B008  (frozen)
        noise_offset: float = 0.0,
        began: float | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.prompt_dropout, self.noise_offset, self.seed = prompt_dropout, noise_offset, seed
        self.schedule = schedule
        self.log_every_n_steps = log_every_n_steps
        self.register_buffer("null_text", null_text, persistent=False)
        self.null_text: Float[Tensor, "1 n d"]
        self.strict_loading = False  # checkpoints leave out what is locked of the base
        self.micro_batch = self.samples_seen = 0
        self.began = time.perf_counter() if began is None else began
        self.earlier_seconds = 0.0
        self.logged_loss: float | None = None
        self._losses: list[Tensor] = []
        self._lost = 0  # micro-batches since the last row with a loss that was a number
        self._groups: list[list[str]] | None = None  # names of what each of a checkpoint's parameter groups holds
        self._step_before = -1
        self._stepped_at = 0  # micro-batches at the last optimizer step

    def on_fit_start(self) -> None:
        self._fit_began, self._samples_before = time.perf_counter(), self.samples_seen
        self._last_row = self._fit_began, self.samples_seen

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._step_before = self.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        eps, t, dropped = self.draw(batch)
        text = torch.where(dropped[:, None, None], self.null_text, batch.text)
        loss = self.objective(self.model, batch._replace(text=text), eps, t).mean()
        self.micro_batch += 1
        self.samples_seen += len(t) * self.trainer.world_size
        self._losses.append(loss.detach())
        return loss

    def draw(self, batch: Batch) -> tuple[Float[Tensor, "b 4 h w"], Int[Tensor, " b"], Bool[Tensor, " b"]]:
        """This micro-batch's noise, timesteps, and which prompts are replaced by ""."""
        entropy = np.random.SeedSequence([self.seed, 0, self.micro_batch])
        # On the CPU: the same draws on every device.
        generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        world = self.trainer.world_size
        count = len(batch.latents) * world
        eps = torch.randn((count, *batch.latents.shape[1:]), generator=generator)
        timesteps = self.model.base.scheduler.config["num_train_timesteps"]
        t = torch.randint(timesteps, (count,), generator=generator)
        dropped = torch.rand(count, generator=generator) < self.prompt_dropout
        if self.noise_offset:
            eps += self.noise_offset * torch.randn((count, eps.shape[1], 1, 1), generator=generator)
        own = slice(self.global_rank, None, world)  # as `SeededBatches` deals the items
        device = batch.latents.device
        return eps[own].to(batch.latents), t[own].to(device), dropped[own].to(device)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # A phase that changes the accumulation leaves steps of fewer micro-batches, and Lightning has divided by all.
        held, self._stepped_at = self.micro_batch - self._stepped_at, self.micro_batch
        if held < self.trainer.accumulate_grad_batches:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad *= self.trainer.accumulate_grad_batches / held
        factor = self.schedule(self.global_step, steps_in_all(self.trainer) or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the mean loss since the last row, every `log_every_n_steps` optimizer steps."""
        if self._row_due():
            self._log_row()

    def on_train_end(self) -> None:
        """Log what the last row left out, so that the last loss is the end's; a stopped run does so when it goes on."""
        if self._losses and not was_interrupted(self.trainer):
            self._log_row()

    def _log_row(self) -> None:
        losses = self._shared_losses()
        self.logged_loss = losses.mean().item()
        self._losses.clear()
        row = {
            "train/loss": self.logged_loss,
            "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            "train/images_per_second": self._row_speed(),
        }
        for logger in self.loggers:
            logger.log_metrics({**self.clocks(), **row}, step=self.global_step)
        # A scaler of gradients passes over a step that overflows, and the next ones are good again.
        self._lost = 0 if losses.isfinite().any() else self._lost + len(losses)
        if self._lost >= LOST:
            raise InputError(f"train/loss is {self.logged_loss} at step {self.global_step:,}; {REMEDY}")

    def check_weights(self, weights: Iterable[Tensor]) -> None:
        """Raise InputError if any of the weights is no number: the last steps may have lost a run."""
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise InputError(f"the weights are no numbers at step {self.global_step:,}; {REMEDY}")

    def _shared_losses(self) -> Float[Tensor, " n"]:
        """Of each micro-batch since the last row, the mean loss of all processes; all have to ask."""
        # A checkpoint brings its losses to the CPU.
        losses = torch.stack([loss.to(self.device) for loss in self._losses])
        return self.trainer.strategy.reduce(losses, reduce_op="mean")

    def _row_speed(self) -> float:
        """Images/s since the last row, or since the sitting began; probes left out."""
        callbacks: list[Callback] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        paused = sum(callback.seconds for callback in callbacks if isinstance(callback, Probe))
        now = time.perf_counter() - paused, self.samples_seen
        seconds, samples = now[0] - self._last_row[0], now[1] - self._last_row[1]
        self._last_row = now
        return samples / seconds

    def _row_due(self) -> bool:
        # Not by counting micro-batches: a phase may change how many make a step.
        stepped = self.global_step != self._step_before
        return stepped and self.global_step % self.log_every_n_steps == 0

    def clocks(self) -> dict[str, int]:
        """The three clocks that every row carries."""
        return {
            "optimizer_step": self.global_step,
            "micro_batch": self.micro_batch,
            "samples_seen": self.samples_seen,
        }

    def wall_seconds(self) -> float:
        """Seconds since the run began, preparation included; of a resumed run, those of all its sittings."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def images_per_second(self, but: float) -> float | None:
        """Images trained on in this sitting for each second of its training, `but` seconds left out; None without."""
        seen = self.samples_seen - self._samples_before
        return round(seen / (time.perf_counter() - self._fit_began - but), 2) if seen else None

    def configure_model(self) -> None:
        # Lightning calls it again where a process asks twice.
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not is_sharded(self.model):
            shard(self.model, self.trainer.strategy.root_device)

    def configure_optimizers(self) -> Optimizer:
        if self._groups is None:
            return self.optimizer(self.model.parameter_groups())
        # As the checkpoint has them: its optimizer's state goes by their order, which phases made.
        return self.optimizer([{"params": [self.get_parameter(name) for name in names]} for names in self._groups])

    def extend_optimizer(self) -> None:
        """Hand the optimizer what the model has begun to train since it was made."""
        optimizer = self.trainer.optimizers[0]
        known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for group in self.model.parameter_groups():
            new = [parameter for parameter in group["params"] if parameter not in known]
            if new:
                # At the branch's learning rate as it is now, before any cooldown, if it has none of its own.
                branch = optimizer.param_groups[0]
                lr = branch.get("initial_lr", branch["lr"])
                optimizer.add_param_group({"lr": lr, **group, "params": new})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = {parameter: name for name, parameter in self.named_parameters()}
        groups = [[names[p] for p in group["params"]] for group in self.trainer.optimizers[0].param_groups]
        kept = set().union(*groups)  # what has been trained, also of the base
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in weights.items() if k in kept or not k.startswith("model.base.")}
        checkpoint["parameter_groups"] = groups
        checkpoint["wiring"] = self.model.wiring()
        checkpoint["clocks"] = self.clocks()
        checkpoint["wall_seconds"] = self.wall_seconds()
        # A checkpoint of this step is written before its row is: the resumed run must not log these losses twice.
        left = self._losses and not self._row_due()
        checkpoint["losses"] = list(self._shared_losses()) if left else []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "wiring" in checkpoint:  # older checkpoints are of runs that trained the branch and changed nothing
            # Before weights are loaded by name and the optimizer is made; of a sharded model after that, which is why
            # its phases change neither.
            self.model.rewire(checkpoint["wiring"])
            self._groups = checkpoint["parameter_groups"]
        self.micro_batch = self._stepped_at = checkpoint["clocks"]["micro_batch"]
        self.samples_seen = checkpoint["clocks"]["samples_seen"]
        self.earlier_seconds = checkpoint["wall_seconds"]
        self._losses = checkpoint["losses"]
        # Lightning may call on_fit_start before this: under trainer=fsdp it does.
        self._samples_before, self._last_row = self.samples_seen, (time.perf_counter(), self.samples_seen)
