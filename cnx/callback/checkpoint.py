"""Checkpoints to resume from."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from cnx.errors import check_whole


class Checkpoint(ModelCheckpoint):
    """Keeps `checkpoints/last.ckpt` of the run folder: every `every` optimizer steps, and when the run stops.

    Written beside it first, then put in its place: a checkpoint is there whole, or as it was before.
    """

    def __init__(self, every: int = 500) -> None:
        check_whole("callback.checkpoint.every", every)
        super().__init__(
            filename="last",
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # Here and not after the loop: Lightning's loops count this batch as done only in a checkpoint of this hook.
        last_epoch = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        last = trainer.should_stop or last_epoch or trainer.global_step == trainer.max_steps
        if last and self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath + ".part")
        if trainer.is_global_zero:
            os.replace(filepath + ".part", filepath)
