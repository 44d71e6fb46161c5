"""The paper's ablation under four prompts, at the end of a run."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cnx.callback.bench import Probed
from cnx.callback.ema import averaged
from cnx.callback.interrupt import was_interrupted
from cnx.callback.probe import replace_file, save_arrays
from cnx.condition import Condition, Given
from cnx.data.module import HeldOut, to_uint8
from cnx.data.prompts import PROMPT_MODES, PromptMode, prompts_of, read_prompt_modes
from cnx.errors import InputError, check_whole
from cnx.model.sharding import put_together
from cnx.report.prompts import prompt_grid
from cnx.sampler import Sampler
from cnx.sampler.evaluation import Evaluation, evaluate, text_of


class PromptAblation(Callback):
    """Draws held-out items under no, insufficient, conflicting and perfect prompts when a run has ended.

    ControlNet (ICCV 2023), section 4 "Ablative study", figure 8: a branch that reads its map by itself obeys it under
    any prompt. Each kind of prompt has its own floor: the same prompts and noise at strength 0. Not after an
    interrupted run, which goes on later; only the process of rank zero draws. Writes what `save_prompt_ablation` does.

    Args:
        condition, sampler: as the probe's.
        items: held-out items, the probe's first ones.
        prompt_mode: as `read_prompt_modes` takes it.
        default_prompt: the insufficient one.
        seed: of the noise; the probe's gives the same noise.

    Raises:
        InputError: `items` is not whole or below 1, or `condition` cannot judge.

    Attributes:
        fidelity: calibrated control fidelity under each kind of prompt, once it is measured.
        seconds: wall time that it took.
    """

    def __init__(
        self,
        condition: Condition,
        sampler: Sampler,
        default_prompt: str,
        items: int = 16,
        prompt_mode: str | Sequence[str] = "all",
        seed: int = 0,
    ) -> None:
        check_whole("callback.prompts.items", items)
        if isinstance(condition, Given):
            raise InputError(
                "condition=none: nothing can say how well a drawing obeys such maps; give the maps' own condition, or"
                " leave four_prompts out of callback="
            )
        self.condition, self.sampler, self.default_prompt = condition, sampler, default_prompt
        self.items, self.modes, self.seed = items, read_prompt_modes(prompt_mode), seed
        self.fidelity: dict[PromptMode, float] = {}
        self.seconds = 0.0

    def check(self, prompts: Sequence[str]) -> None:
        """Find out before anything is written whether held-out items with these prompts can be drawn so.

        Raises InputError as `prompts_of` does.
        """
        for mode in self.modes:
            prompts_of(mode, prompts[: self.items], self.default_prompt)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if was_interrupted(trainer):
            return
        with put_together(pl_module):
            if trainer.is_global_zero:
                self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        began = time.monotonic()
        pl_module.to(trainer.strategy.root_device)  # from where Lightning has put it away after training
        run = cast(Probed, pl_module)
        heldout: HeldOut = cast(Any, trainer).datamodule.heldout(self.items)
        run.model.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context(), averaged(trainer, pl_module):
            texts: dict[PromptMode, Tensor] = {
                mode: text_of(mode, heldout, run.null_text, run.model, self.default_prompt) for mode in self.modes
            }
            found = evaluate(run.model, self.sampler, self.condition, heldout, run.null_text, texts, self.seed)
        facts = {"optimizer_steps": trainer.global_step, "seed": self.seed}
        folder = Path(trainer.default_root_dir)
        save_prompt_ablation(folder, found, heldout, self.condition, self.default_prompt, facts)
        self.fidelity = {mode: evaluation.calibrated for mode, evaluation in found.items()}
        line = f"prompts: control fidelity {in_words(found)}, on {len(heldout.index)} held-out items"
        rich.get_console().print(line, highlight=False, markup=False, soft_wrap=True)
        self.seconds += time.monotonic() - began


def save_prompt_ablation(
    folder: Path,
    found: Mapping[PromptMode, Evaluation],
    heldout: HeldOut,
    condition: Condition,
    default_prompt: str,
    facts: Mapping[str, Any],
) -> None:
    """Write a run's results under several kinds of prompt into its folder.

    `prompts.json` (`facts`; for each kind its prompts, fidelity with floor and ceiling, standard errors over the items,
    and each item's fidelity), `samples/prompts.npz` (the pictures) and `prompts.png` (the grid made of them).
    """
    prompts = {mode: prompts_of(mode, heldout.prompts, default_prompt) for mode in found}
    modes = {
        mode: {**evaluation.to_json(), "items": evaluation.scores["raw"], "prompts": prompts[mode]}
        for mode, evaluation in found.items()
    }
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    save_arrays(
        folder / "samples" / "prompts.npz",
        control=to_uint8(heldout.control),
        target=to_uint8(heldout.target),
        **{mode: evaluation.pictures for mode, evaluation in found.items()},
    )
    content = {**facts, "items": len(heldout.index), "measure": condition.measure, "prompt_modes": modes}
    replace_file(folder / "prompts.json", (json.dumps(content, indent=1) + "\n").encode())
    prompt_grid(folder)


def in_words(found: Mapping[PromptMode, Evaluation]) -> str:
    """Like `0.41 with no prompt, 0.52 insufficient, 0.48 conflicting, 0.60 perfect`."""
    return ", ".join(f"{found[mode].calibrated:z.2f} {mode}" for mode in PROMPT_MODES if mode in found)
