"""What a kind of control can do: make a map of a photo, compare two maps, show one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

Pixels = UInt8[np.ndarray, "h w 3"]


def in_all_channels(grey: UInt8[np.ndarray, "h w"]) -> Pixels:
    """A grey picture as an RGB one."""
    return np.repeat(grey[:, :, None], 3, axis=2)


class Agreement(NamedTuple):
    """How well two maps agree.

    Attributes:
        fidelity: in [0, 1], 1 is best: what the probe calibrates.
        published: the number of the literature in its own unit, which the condition's `measure` names.
        parts: that of each map by the name of its condition, where there are several.
    """

    fidelity: float
    published: float
    parts: Mapping[str, "Agreement"] = {}


class Condition(ABC):
    """A kind of control: its annotator, its drawing conventions and its way of comparing two maps.

    Photos and control maps are RGB in 0..255, "h w 3"; a map has the size of its photo.

    Attributes:
        white: the drawing convention: what white, or colour, means in the map.
        licence: of the annotator's code and weights.
        measure: what `Agreement.published` is, with unit and direction: "edge F1, pixel-exact; higher is better".
    """

    white: str
    licence: str
    measure: str

    @abstractmethod
    def __call__(self, image: Pixels) -> Pixels:
        """Annotate: the control map of a photo."""

    def annotate(self, images: Sequence[Pixels]) -> list[Pixels]:
        """The maps of several photos, of any sizes; a detector that can look at many at once does."""
        return [self(image) for image in images]

    @abstractmethod
    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """How well the map of a drawing agrees with the map that was wanted, of the same size."""

    def judge(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """How well a drawn image obeys the wanted map: the image is annotated again."""
        return self.compare(self(drawn), wanted)

    def display(self, control_map: Pixels) -> Pixels:
        """The map as a person wants to see it; as it is, unless a kind of map needs more."""
        return control_map
