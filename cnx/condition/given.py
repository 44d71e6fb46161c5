"""No annotator: the pictures are control maps already."""

from cnx.condition.condition import Agreement, Condition, Pixels
from cnx.errors import InputError


class Given(Condition):
    """Takes control maps as they are. It cannot annotate a drawing, so it cannot judge one either."""

    white = "whatever it means in the maps that are given"
    licence = "none is needed"
    measure = "none"

    def __call__(self, image: Pixels) -> Pixels:
        return image

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """Raises InputError: there is nothing to compare."""
        raise InputError("condition=none: cannot say how well a drawing obeys its map; give the maps' own condition")
