"""How well drawings of held-out items obey their control maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cnx.condition import Agreement, Condition
from cnx.data.module import HeldOut, to_uint8
from cnx.data.prompts import PromptMode, conflicting
from cnx.metric import calibrate, is_degenerate
from cnx.model import Controlled
from cnx.sampler.control import Control
from cnx.sampler.sampler import Sampler

# Fidelity under control, at strength 0 and of the VAE's reconstruction; and beside each what the literature publishes.
SCORES = {"raw": "published", "floor": "published_floor", "ceiling": "published_ceiling"}


@dataclass(frozen=True)
class Evaluation:
    """Drawings of held-out items under one kind of prompt, and their scores.

    Attributes:
        pictures: what was drawn under control.
        scores: of each item, by the names of SCORES; the floor is that of the same prompts and noise.
        parts: where there are several conditions, the same scores by each alone.
    """

    pictures: UInt8[np.ndarray, "n H W 3"]
    scores: Mapping[str, list[float]]
    parts: Mapping[str, "Evaluation"] = field(default_factory=dict)

    @classmethod
    def of(cls, pictures: UInt8[np.ndarray, "n H W 3"], agreements: Mapping[str, Sequence[Agreement]]) -> "Evaluation":
        """By the agreement of each item with and without control, and of the reconstruction: the keys of SCORES."""
        scores = {name: [one.fidelity for one in found] for name, found in agreements.items()}
        scores |= {SCORES[name]: [one.published for one in found] for name, found in agreements.items()}
        parts = {
            part: cls.of(pictures, {name: [one.parts[part] for one in found] for name, found in agreements.items()})
            for part in agreements["raw"][0].parts
        }
        return cls(pictures, scores, parts)

    @property
    def mean(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.scores.items()}

    @property
    def calibrated(self) -> float:
        """Calibrated control fidelity, of the means (`cnx.metric.calibrate`)."""
        mean = self.mean
        return calibrate(mean["raw"], mean["floor"], mean["ceiling"])

    def to_json(self) -> dict[str, Any]:
        """The means, calibrated too; the standard error of each over the items; whether there is a scale at all."""
        mean, n = self.mean, len(self.pictures)
        error = {name: float(np.std(v, ddof=1) / n**0.5) if n > 1 else None for name, v in self.scores.items()}
        return {
            "control_fidelity": {
                **mean,
                "calibrated": self.calibrated,
                **{name: part.to_json()["control_fidelity"] for name, part in self.parts.items()},
            },
            "standard_error": error,
            "degenerate": is_degenerate(mean["floor"], mean["ceiling"]),
        }


def text_of(
    mode: PromptMode, heldout: HeldOut, null_text: Float[Tensor, "1 l d"], model: Controlled, default: str
) -> Float[Tensor, "n l d"]:
    """The embeddings of the held-out items' prompts in a mode (`cnx.data.prompts.prompts_of`)."""
    if mode == "perfect":
        return heldout.text
    if mode == "conflicting":
        return heldout.text[conflicting(heldout.prompts)]
    text = null_text if mode == "none" else model.base.encode_text([default])
    return text.to(heldout.text).expand_as(heldout.text)


@torch.no_grad()
def evaluate(
    model: Controlled,
    sampler: Sampler,
    condition: Condition,
    heldout: HeldOut,
    null_text: Float[Tensor, "1 l d"],
    texts: Mapping[PromptMode, Float[Tensor, "n l d"]],
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> dict[PromptMode, Evaluation]:
    """Draw the items under each mode's prompts with and without control, from the same noise, and judge them.

    The noise is that of the probe with the same seed, on the CPU: the same on every machine. The model has to be in
    eval mode; `on_step` is called after each of the 2 * steps sampling steps of each chunk and mode.
    """
    base = model.base
    noise = torch.randn(heldout.latents.shape, generator=torch.Generator().manual_seed(seed))
    pictures: dict[PromptMode, list[UInt8[np.ndarray, "n H W 3"]]] = {mode: [] for mode in texts}
    agreements: dict[PromptMode, dict[str, list[Agreement]]] = {mode: {name: [] for name in SCORES} for mode in texts}
    for part in torch.arange(len(noise)).split(sampler.chunk):
        maps = heldout.control[part].to(base.device)
        wanted = to_uint8(maps)
        ceiling = to_uint8(base.decode_latents(heldout.latents[part].to(base.device)))
        for mode, text in texts.items():
            drawn = {"ceiling": ceiling}
            for name, strength in (("raw", 1.0), ("floor", 0.0)):
                latents = sampler.draw(
                    model,
                    text[part].to(base.device),
                    null_text.to(base.device),
                    noise[part].to(base.device),
                    [Control(model, maps, strength)],
                    on_step=on_step,
                )
                drawn[name] = to_uint8(base.decode_latents(latents))
            pictures[mode].append(drawn["raw"])
            for name in SCORES:
                for image, control_map in zip(drawn[name], wanted, strict=True):
                    agreements[mode][name].append(condition.judge(image, control_map))
    return {mode: Evaluation.of(np.concatenate(pictures[mode]), agreements[mode]) for mode in texts}
