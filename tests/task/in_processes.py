"""A run of the toy in one process, or in two that share the optimizer's state; saves its weights and losses."""

import importlib.util
import sys
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Trainer
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.utils.data import DataLoader, Dataset

from cnx.data.module import Batch
from cnx.objective import Denoise
from cnx.task.training import Training

file = Path(__file__).parent.parent / "callback" / "conftest.py"
spec: Any = importlib.util.spec_from_file_location("toys", file)
toys = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)


class Dealt(toys.ToyData):
    """Batches of four pairs, of which each process gets every world-th, as `SeededBatches` deals them."""

    def train_dataloader(self) -> DataLoader:
        own = slice(self.trainer.global_rank, None, self.trainer.world_size)
        doubles = [(self.batch(i), self.batch(i + 100)) for i in range(12)]
        batches = [Batch(*(torch.cat(both)[own] for both in zip(*double, strict=True))) for double in doubles]
        return DataLoader(cast(Dataset, batches), batch_size=None)


if __name__ == "__main__":
    processes, saved_to = int(sys.argv[1]), Path(sys.argv[2])
    adamw = {"optimizer_class": torch.optim.AdamW} if processes > 1 else {}
    kind: Any = ZeroRedundancyOptimizer if processes > 1 else torch.optim.AdamW
    model = toys.tiny_model()
    start = {name: tensor.clone() for name, tensor in model.branch.state_dict().items()}
    training = Training(
        model=model,
        objective=Denoise(),
        optimizer=lambda groups: kind(groups, lr=1e-3, eps=1e-4, **adamw),
        null_text=torch.zeros(1, 5, 8),
        prompt_dropout=0.5,
        seed=0,
        log_every_n_steps=3,  # of four: a checkpoint of the last holds losses that are in no row yet
        noise_offset=0.1,
    )
    trainer = Trainer(
        strategy="ddp_fork" if processes > 1 else "auto",
        accelerator="cpu",
        devices=processes,
        max_steps=4,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )

    def save() -> None:
        """In the process that trains: what a fork has learnt, its parent does not know."""
        checkpoint: dict[str, Any] = {"state_dict": {}}
        training.on_save_checkpoint(checkpoint)
        losses = {"logged": training.logged_loss, "left": torch.stack(checkpoint["losses"])}
        if trainer.is_global_zero:
            torch.save({"start": start, "end": model.branch.state_dict(), **losses}, saved_to)

    training.on_train_end = save  # type: ignore[method-assign]
    trainer.fit(training, datamodule=Dealt())
