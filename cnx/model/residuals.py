"""What a control branch hands to the base."""

from dataclasses import dataclass
from itertools import zip_longest

from torch import Tensor


@dataclass(frozen=True)
class Residuals:
    """The links' values: one tensor for each of the UNet's skips, in the encoder's order, and one for its middle."""

    down: tuple[Tensor, ...]
    mid: Tensor

    def scaled(self, strength: float) -> "Residuals":
        """Every link multiplied by `strength`."""
        return Residuals(tuple(link * strength for link in self.down), self.mid * strength)

    def __add__(self, other: "Residuals") -> "Residuals":
        """Link by link; a ControlNet without links to the skips adds nothing there."""
        down = tuple(a + b for a, b in zip_longest(self.down, other.down, fillvalue=0))
        return Residuals(down, self.mid + other.mid)
