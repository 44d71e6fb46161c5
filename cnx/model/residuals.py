"""What a control branch hands to the base."""

from dataclasses import dataclass

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
        down = self.down or other.down
        if self.down and other.down:
            down = tuple(a + b for a, b in zip(self.down, other.down, strict=True))
        return Residuals(down, self.mid + other.mid)
