"""Where a model is tried again and again: the same held-out items, the same noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cnx.base import in_chunks
from cnx.condition import Agreement, Condition
from cnx.data.module import Batch, HeldOut, to_uint8
from cnx.model import Controlled
from cnx.sampler import DDIM


class Probed(Protocol):
    """What is asked of the LightningModule that is tried."""

    model: Controlled
    objective: Callable[..., Float[Tensor, " b"]]  # (model, batch, eps, t, strength=1.0)
    null_text: Float[Tensor, "1 n d"]

    def clocks(self) -> dict[str, int]:
        """optimizer_step, micro_batch, samples_seen."""
        ...


@dataclass(frozen=True)
class Score:
    """How well samples agree with their maps (`cnx.condition.Agreement`), averaged over the items.

    `raw` is the condition's fidelity, in [0, 1]; `published` the number of the literature, by its `measure`. Where
    there are several conditions, `parts` has both of each, by its name.
    """

    raw: float
    published: float
    items: tuple[float, ...] = ()  # the raw one of each item, for paired comparisons between runs
    parts: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, agreements: Sequence[Agreement]) -> "Score":
        means = _means(agreements)
        parts = {name: _means([one.parts[name] for one in agreements]) for name in agreements[0].parts}
        return cls(**means, items=tuple(one.fidelity for one in agreements), parts=parts)


def _means(agreements: Sequence[Agreement]) -> dict[str, float]:
    return {
        "raw": float(np.mean([one.fidelity for one in agreements])),
        "published": float(np.mean([one.published for one in agreements])),
    }


class Bench:
    """Held-out items with noise, eps and timesteps that stay the same from the first probe of a run to the last.

    The model has to be in eval mode wherever it is drawn with. What fits at once is found by `sampler.chunk`.

    Args:
        run: on whose device the items are put.
        heldout: the items.
        condition, sampler: as the probe's.
        seed: of noise, eps and timesteps.

    Attributes:
        control, target, reconstruction: the items' pictures, UInt8 "n H W 3" (control: 3 channels for each condition);
            the reconstruction is the VAE's of the target.
        batch, eps, t: what losses are taken of, each item at a timestep of its own.
        loss_without: at strength 0, of the base as it was at first.
    """

    def __init__(self, run: Probed, heldout: HeldOut, condition: Condition, sampler: DDIM, seed: int) -> None:
        self.heldout, self.condition, self.sampler = heldout, condition, sampler
        device = run.model.base.device
        latents, text, control = heldout.latents.to(device), heldout.text.to(device), heldout.control.to(device)
        # On the CPU: the same noise on every machine.
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(latents.shape, generator=generator).to(device)
        self.eps = torch.randn(latents.shape, generator=generator).to(device)
        # Stratified: every part of the schedule has its share, which random draws of a few would not give.
        n = len(latents)
        strata = (torch.arange(n) + 0.5) / n * run.model.base.scheduler.config["num_train_timesteps"]
        self.t = strata.long()[torch.randperm(n, generator=generator)].to(device)
        index = torch.as_tensor(heldout.index, device=device)
        self.batch = Batch(latents=latents, text=text, control=control, index=index)
        self.control, self.target = to_uint8(control), to_uint8(heldout.target)
        self.reconstruction = self._decode(run, latents)
        self.loss_without = self.loss(run, strength=0.0)

    def draw(self, run: Probed, strength: float = 1.0) -> UInt8[np.ndarray, "n H W 3"]:
        null_text = run.null_text.to(self.batch.text)
        latents = self.sampler(run.model, self.batch.text, null_text, self.batch.control, self.noise, strength)
        return self._decode(run, latents)

    def score(self, images: UInt8[np.ndarray, "n H W 3"]) -> Score:
        """How well pictures of the items obey the items' maps."""
        pairs = zip(images, self.control, strict=True)
        return Score.of([self.condition.judge(drawn, wanted) for drawn, wanted in pairs])

    def loss(self, run: Probed, strength: float = 1.0) -> float:
        """The objective on the items, averaged."""

        def losses(i: slice) -> Tensor:
            return run.objective(run.model, Batch(*(x[i] for x in self.batch)), self.eps[i], self.t[i], strength)

        each, self.sampler.chunk = in_chunks(losses, len(self.t), self.sampler.chunk)
        return float(each.double().mean())

    def _decode(self, run: Probed, latents: Float[Tensor, "n 4 h w"]) -> UInt8[np.ndarray, "n H W 3"]:
        return np.concatenate(
            [to_uint8(run.model.base.decode_latents(part)) for part in latents.split(self.sampler.chunk)]
        )
