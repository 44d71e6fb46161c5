"""No annotator: the pictures are control maps already."""

import numpy as np
from jaxtyping import UInt8

from cnx.errors import InputError


class Given:
    """Takes control maps as they are. It cannot annotate a drawing, so it cannot judge one either."""

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return image

    def fidelity(self, drawn: UInt8[np.ndarray, "h w 3"], wanted: UInt8[np.ndarray, "h w 3"]) -> float:
        """Raises InputError: there is nothing to compare."""
        raise InputError("condition=none: cannot say how well a drawing obeys its map; give the maps' own condition")

    fidelity_exact = fidelity
