"""How control enters a drawing: when, in which half of guidance, and how strongly through each link."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cnx.model import Controlled, Residuals


def equal_weights(links: Sequence[Tensor], x_t: Float[Tensor, "b 4 h w"]) -> list[float]:
    """Every link counts the same."""
    return [1.0] * len(links)


@dataclass(frozen=True)
class GuessWeights:
    """Guess mode: link i of 0 to n, the middle last, times decay^(n - i).

    With SD's 13 links and decay 0.825 these are the released code's scales (gradio_canny2image.py). Deviation from
    diffusers, whose guess mode has 10^(i/n - 1).
    """

    decay: float = 0.825

    def __call__(self, links: Sequence[Tensor], x_t: Float[Tensor, "b 4 h w"]) -> list[float]:
        return [self.decay ** (len(links) - 1 - i) for i in range(len(links))]


def resolution_weights(links: Sequence[Tensor], x_t: Float[Tensor, "b 4 h w"]) -> list[float]:
    """CFG resolution weighting (ControlNet, section 3.4): the coarser a link, the more it counts.

    The paper's w_i = 64 / h_i, with h_i the side of the link's block and 64 that of the latents of a 512 px picture.
    Here it is h / h_i with h the side of the latents in hand: the same at 512 px, and at any other size too a link at
    the latents' full side counts once, one at half the side twice.
    """
    return [x_t.shape[-2] / link.shape[-2] for link in links]


@dataclass(frozen=True)
class Control:
    """One ControlNet's part in a drawing.

    Attributes:
        model: its control branch speaks; the base that draws may be another model's, of the same shape.
        maps: control maps in [0, 1], one for each picture, or as many as the branch takes in 3 channels each.
        strength: multiplies every link; 0 leaves the branch out.
        start, end: fractions of the sampling steps between which control is on. Step i of n is controlled if
            start <= i/n and (i + 1)/n <= end, as diffusers has it.
        conditional_only: leave control out of guidance's unconditional half, so that guidance amplifies it as well.
            Without guidance there is no such half.
        weights: (links in the encoder's order with the middle last, x_t) to a factor for each link.
    """

    model: Controlled
    maps: Float[Tensor, "b m H W"]
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    conditional_only: bool = False
    weights: Callable[[Sequence[Tensor], Tensor], Sequence[float]] = equal_weights

    def __getitem__(self, pictures: slice) -> "Control":
        """The same control of some of the pictures."""
        return replace(self, maps=self.maps[pictures])

    @cached_property
    def encoded(self) -> Float[Tensor, "b c h w"]:
        """What the branch's hint encoder makes of the maps: once for all steps, and for both halves of guidance."""
        return self.model.encode(self.maps)

    def is_on(self, step: int, steps: int) -> bool:
        """Whether sampling step `step` of `steps`, counted from 0, is controlled."""
        return self.strength != 0 and step / steps >= self.start and (step + 1) / steps <= self.end

    def links(self, x_t: Float[Tensor, "n 4 h w"], t: Int[Tensor, " n"], text: Float[Tensor, "n l d"]) -> Residuals:
        """What to add to the base's links.

        n is the number of maps, or under guidance twice that, the unconditional half first.
        """
        pictures = len(self.maps)
        guided = len(x_t) == 2 * pictures
        if guided and self.conditional_only:
            spoken = self.model.control(x_t[pictures:], t[pictures:], text[pictures:], self.maps, self.encoded)
        else:
            maps, encoded = (torch.cat([x, x]) if guided else x for x in (self.maps, self.encoded))
            spoken = self.model.control(x_t, t, text, maps, encoded)
        links = [*spoken.down, spoken.mid]
        weights = self.weights(links, x_t)
        links = [link * (self.strength * weight) for link, weight in zip(links, weights, strict=True)]
        if guided and self.conditional_only:
            links = [torch.cat([torch.zeros_like(link), link]) for link in links]
        return Residuals(tuple(links[:-1]), links[-1])
