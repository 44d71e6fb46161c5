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
        # `processed`, unlike `completed`, counts the batch whose hooks are running; the total, unlike what is current,
        # does not depend on whether a resumed run has begun its next pass yet.
        done = trainer.fit_loop.epoch_loop.batch_progress.state_dict()["total"]["processed"]
        ahead, rest = divmod(max(0, passes * int(batches) - done), int(batches))
        in_a_pass = math.ceil(batches / accumulated)
        # Steps end at multiples of the accumulation, counted from the pass's beginning, and at its end.
        left = in_a_pass - (int(batches) - rest) // accumulated if rest else 0
        bounds.append(trainer.global_step + left + in_a_pass * ahead)
    return min(bounds, default=None)
