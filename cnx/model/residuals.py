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
        pairs = zip_longest(self.down, other.down)
        down = tuple(a + b if a is not None and b is not None else b if a is None else a for a, b in pairs)
        return Residuals(down, self.mid + other.mid)
