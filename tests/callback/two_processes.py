"""A run of the toy in two processes whose phases change what they share; prints how far apart their weights are."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning import Callback, LightningModule, Trainer

from cnx.callback import Phases
from cnx.objective import Denoise
from cnx.task.training import Training

PHASES = [
    {"when": 1, "links": "all"},
    {"when": 2, "unlock": "decoder"},
    {"when": 3, "unlock": "all", "accumulate_grad_batches": 2},
    {"when": 5, "links": "mid", "unlock": None},
]


class Compare(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ours = torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()])
        both: list[Any] = [torch.empty_like(ours) for _ in range(2)]
        torch.distributed.all_gather(both, ours)
        if trainer.is_global_zero:
            print(f"step {trainer.global_step}: apart by {(both[0] - both[1]).abs().max():g}")


if __name__ == "__main__":
    file = Path(__file__).with_name("conftest.py")
    spec: Any = importlib.util.spec_from_file_location("toys", file)
    toys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    model = toys.tiny_model()
    model.link("mid")
    training = Training(
        model=model,
        objective=Denoise(),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        null_text=torch.zeros(1, 5, 8),
        prompt_dropout=0.5,
        seed=0,  # each process draws noise of its own all the same
        log_every_n_steps=1,
    )
    trainer = Trainer(
        strategy="ddp_fork",
        accelerator="cpu",
        devices=2,
        max_steps=6,
        max_epochs=-1,
        callbacks=[Phases(PHASES), Compare()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(training, datamodule=toys.OneBatch())
