"""How long a run is."""

import math

from lightning.pytorch import Trainer


def steps_in_all(trainer: Trainer) -> int | None:
    """The optimizer steps that a run will have made at its end, as it is set now; None where nothing bounds it.

    `Trainer.estimated_stepping_batches` reckons as if the accumulation of now had held from the start. Here the steps
    that were made count as they were, so that it holds after a phase has changed it. For a run that trains; asked from
    within a step, that one is not yet made.
    """
    bounds = [trainer.max_steps] if trainer.max_steps >= 0 else []
    batches, passes = trainer.num_training_batches, trainer.max_epochs
    if passes is not None and passes >= 0 and batches < math.inf:
        accumulated = trainer.accumulate_grad_batches
        # `processed`, unlike `completed`, counts the batch whose hooks are running.
        done = trainer.fit_loop.epoch_loop.batch_progress.state_dict()["current"]["processed"]
        in_a_pass = math.ceil(batches / accumulated)
        # Steps end at multiples of the accumulation, counted from the pass's beginning, and at its end.
        left = in_a_pass - done // accumulated if done < batches else 0
        bounds.append(trainer.global_step + left + in_a_pass * max(0, passes - trainer.current_epoch - 1))
    return min(bounds, default=None)
