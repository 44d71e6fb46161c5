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
