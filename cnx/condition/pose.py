"""Poses."""

from collections.abc import Sequence
from dataclasses import dataclass

from cnx.condition.condition import Agreement, Pixels
from cnx.condition.detector import SCENES, SKELETON_MODEL, skeleton_detector
from cnx.condition.geometry import GeometricCondition, Geometry
from cnx.condition.skeleton import draw_skeletons, read_points
from cnx.errors import InputError
from cnx.metric import match_points


@dataclass(frozen=True)
class Pose(GeometricCondition):
    """Skeletons in OpenPose's style on black: a dot of its own hue for each joint, limbs at 60% of the brightness.

    People have OpenPose's 18 joints and colours, and hands and face where the detector sees them; birds and dogs
    have joints of their own (`cnx.condition.skeleton`).

    Attributes:
        path: the detector: the one of drawn scenes that ships with the repository, or for photos the folder or hub id
            of a ViTPose model of transformers.
        people: where people are found first, the folder or hub id of an object detector of transformers (RT-DETR, DETR,
            ...); null takes the whole picture for one person.
    """

    white = "a point of a face; each joint has its hue"
    licence = "MIT (drawn scenes); of the models that path and people name (ViTPose, RT-DETR: Apache-2.0)"
    measure = "PCK at 0.1 of the body's box x 100; higher is better"
    for_photos = SKELETON_MODEL

    path: str = SCENES
    people: str | None = None

    def __call__(self, image: Pixels) -> Pixels:
        return self.annotate([image])[0]

    def annotate(self, images: Sequence[Pixels]) -> list[Pixels]:
        found = skeleton_detector(self.path, self.people).skeletons(images)
        return [draw_skeletons(bodies, *image.shape[:2]) for bodies, image in zip(found, images, strict=True)]

    def draw(self, geometry: Geometry) -> Pixels:
        if geometry.skeletons is None:
            raise InputError("condition=pose: what this data set shows has no skeleton; use data=birds or data=dogs")
        return draw_skeletons(geometry.skeletons, *geometry.nearness.shape)

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """PCK. Fidelity is F1, of it and of the share of drawn joints that are wanted: more birds are not better."""
        found, right = match_points(read_points(drawn), read_points(wanted))
        return Agreement(2 * found * right / (found + right) if found + right else 0.0, 100 * found)
