"""Semantic segmentation."""

from collections.abc import Sequence
from dataclasses import dataclass

from cnx.condition import ade20k
from cnx.condition.condition import Agreement, Pixels
from cnx.condition.detector import CLASS_MODEL, SCENES, class_detector
from cnx.condition.geometry import GeometricCondition, Geometry
from cnx.errors import InputError
from cnx.metric import mean_iou


@dataclass(frozen=True)
class Segmentation(GeometricCondition):
    """Classes of ADE20K's scene parsing benchmark, each in its colour of that benchmark (`cnx.condition.ade20k`).

    Attributes:
        path: the detector: the one of drawn scenes that ships with the repository, or for photos the folder or hub id
            of a segmentation model of transformers with ADE20K's 150 classes (SegFormer, UperNet, BEiT, ...).
    """

    white = "nothing is white: each class has its colour; black is unknown"
    licence = "MIT (drawn scenes); of the model that path names (UperNet: MIT; SegFormer: not for commercial use)"
    measure = "mIoU x 100, over the classes of a map; higher is better"
    for_photos = CLASS_MODEL

    path: str = SCENES

    def __call__(self, image: Pixels) -> Pixels:
        return self.annotate([image])[0]

    def annotate(self, images: Sequence[Pixels]) -> list[Pixels]:
        return [ade20k.paint(classes) for classes in class_detector(self.path).classes(images)]

    def draw(self, geometry: Geometry) -> Pixels:
        return ade20k.paint(geometry.classes)

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """mIoU of each picture, where ControlNet++ counts a class over all pictures at once. Fidelity is mIoU.

        Raises InputError where the wanted map has no colour of the palette.
        """
        true = ade20k.read(wanted)
        if (true == ade20k.UNKNOWN).all():
            raise InputError(
                "condition=segmentation: a control map has none of ADE20K's colours; give maps in its palette"
            )
        iou = mean_iou(ade20k.read(drawn), true, ade20k.UNKNOWN)
        return Agreement(iou, 100 * iou)
