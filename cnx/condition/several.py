"""Several kinds of control at once."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from cnx.condition.condition import Agreement, Condition, Pixels
from cnx.condition.given import Given
from cnx.errors import InputError

Stacked = UInt8[np.ndarray, "h w c"]


class Several(Condition):
    """The maps of several conditions, stacked in the channels in the order in which they are given: "h w 3n".

    A drawing's fidelity is the mean of its fidelities to each of them, and so is `published`, since their own numbers
    have no common unit; `Agreement.parts` has each. `conditions` are given by name. Raises InputError for fewer than
    two of them, and for `Given`, which judges nothing.
    """

    def __init__(self, **conditions: Condition) -> None:
        if len(conditions) < 2:
            raise InputError("condition: cnx.condition.Several takes two or more; name them as condition=[canny,depth]")
        if any(isinstance(part, Given) for part in conditions.values()):
            raise InputError(f"condition=[{','.join(conditions)}]: none makes no maps beside others'; leave it out")
        self.conditions = conditions
        self.white = "; ".join(f"{name}: {part.white}" for name, part in conditions.items())
        self.licence = "; ".join(dict.fromkeys(part.licence for part in conditions.values()))
        self.measure = f"mean of the fidelities to {' and '.join(conditions)}, in [0, 1]; higher is better"

    def __call__(self, image: Pixels) -> Stacked:
        return self.annotate([image])[0]

    def annotate(self, images: Sequence[Pixels]) -> list[Stacked]:
        of_each = [part.annotate(images) for part in self.conditions.values()]
        return [np.concatenate(maps, axis=2) for maps in zip(*of_each, strict=True)]

    def compare(self, drawn: Stacked, wanted: Stacked) -> Agreement:
        drawn_maps = dict(zip(self.conditions, apart(drawn), strict=True))
        return self._agreement(wanted, lambda name, part, own: part.compare(drawn_maps[name], own))

    def judge(self, drawn: Pixels, wanted: Stacked) -> Agreement:
        """How well a drawn image obeys all the maps that were wanted: each condition judges by its own."""
        return self._agreement(wanted, lambda name, part, own: part.judge(drawn, own))

    def display(self, control_map: Stacked) -> Stacked:
        """Each map as its condition shows it, stacked again."""
        shown = [part.display(own) for part, own in zip(self.conditions.values(), apart(control_map), strict=True)]
        return np.concatenate(shown, axis=2)

    def _agreement(self, wanted: Stacked, of: Callable[[str, Condition, Pixels], Agreement]) -> Agreement:
        maps = zip(self.conditions.items(), apart(wanted), strict=True)
        parts = {name: of(name, part, own) for (name, part), own in maps}
        mean = float(np.mean([part.fidelity for part in parts.values()]))
        return Agreement(mean, mean, parts)


def parts_of(condition: Condition) -> list[Condition]:
    """The conditions that are at work at once: those of `Several` in the order of their channels, or the one."""
    return [*condition.conditions.values()] if isinstance(condition, Several) else [condition]


def apart(maps: UInt8[np.ndarray, "... c"]) -> list[UInt8[np.ndarray, "... 3"]]:
    """Maps that are stacked in the channels, one by one."""
    return [maps[..., first : first + 3] for first in range(0, maps.shape[-1], 3)]
