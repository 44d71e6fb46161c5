"""Detectors of photos: models of transformers and diffusers, from a folder in their format or by hub id.

Photos of one size are looked at together, as a GPU wants it.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cnx.base.base import find_folder
from cnx.base.chunks import each_chunk
from cnx.condition.condition import Pixels
from cnx.condition.detector import CLASS_MODEL, DEPTH_MODEL, NORMAL_MODEL, SKELETON_MODEL
from cnx.condition.geometry import Joints
from cnx.condition.skeleton import FACE, HANDS
from cnx.errors import InputError

Found = TypeVar("Found")
SURE = 0.3  # the least confidence of a joint; of a person it is a half

# Of the 17 points of COCO in their order, the names in OpenPose's skeleton.
COCO = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
    "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
    "right ankle",
)  # fmt: skip
# COCO-WholeBody goes on with six points of the feet, which OpenPose's 18 do not have, then face and hands.
FEET = tuple(f"foot {point}" for point in range(6))
WHOLE_BODY = (*COCO, *FEET, *FACE, *HANDS["left"], *HANDS["right"])


# task=prepare asks from many threads: their batches wait for one another, and not for the device's memory.
_one_batch = Lock()


def _together(
    look: Callable[[list[Pixels]], list[Found]], images: Sequence[Pixels], at_once: int | None = None
) -> list[Found]:
    """What `look` makes of images of one size, for images of any sizes, in their order.

    As many as there are at once on a GPU, or half as many, and half of those, if its memory has no room for that; else
    one by one, which takes a CPU no longer. `at_once` says otherwise.
    """
    at_once = at_once or (len(images) if torch.cuda.is_available() else 1)
    found: dict[int, Found] = {}

    def look_at(rows: list[int]) -> list[Found]:
        with _one_batch, torch.inference_mode():
            return look([images[row] for row in rows])

    for shape in dict.fromkeys(image.shape for image in images):
        rows = [row for row, image in enumerate(images) if image.shape == shape]
        parts, at_once = each_chunk(lambda chunk, rows=rows: look_at(rows[chunk]), len(rows), at_once)
        found |= zip(rows, chain(*parts), strict=True)
    return [found[row] for row in range(len(images))]


def _pictures(images: Sequence[Pixels]) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images]


def _run(model: Any, inputs: Any) -> Any:
    """What the model makes of its inputs, in its own precision: not in training's, under which the probe judges."""
    with torch.autocast(model.device.type, enabled=False):
        return model(**inputs.to(model.device))


def _load(make: Any, path: str, key: str, example: str) -> Any:
    """Load `make.from_pretrained(path)`, onto the GPU if it is a model and there is one."""
    try:
        loaded = make.from_pretrained(str(find_folder(path) or path))
    except Exception as error:  # transformers, diffusers, hub and safetensors each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"condition.{key}={path}: cannot be loaded; download a model once with a network, hf download {example}"
            f" --local-dir models/{example.split('/')[-1]}, and give condition.{key}=<that folder> ({reason})"
        ) from error
    return loaded.to("cuda") if torch.cuda.is_available() and hasattr(loaded, "to") else loaded


class DepthEstimator:
    """A depth model of transformers: relative inverse depth, or metric depth, which is inverted."""

    def __init__(self, path: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        self.model = _load(AutoModelForDepthEstimation, path, "path", DEPTH_MODEL).eval()
        self.processor = _load(AutoImageProcessor, path, "path", DEPTH_MODEL)
        settings = self.model.config
        in_metres = ("zoedepth", "depth_pro", "glpn", "prompt_depth_anything")
        self.metric = settings.model_type in in_metres or getattr(settings, "depth_estimation_type", "") == "metric"
        # ZoeDepth of several kinds of scenes takes a batch for one kind.
        self.at_once = 1 if len(getattr(settings, "bin_configurations", ())) > 1 else None

    def nearness(self, images: Sequence[Pixels]) -> list[Float[np.ndarray, "h w"]]:
        """Inverse depth, stretched so that the farthest is 0 and the nearest 1, as the released annotators do."""
        return _together(self._look, images, self.at_once)

    def _look(self, images: list[Pixels]) -> list[Float[np.ndarray, "h w"]]:
        inputs = self.processor(images=_pictures(images), return_tensors="pt")
        outputs = _run(self.model, inputs)
        sizes = [image.shape[:2] for image in images]
        found = self.processor.post_process_depth_estimation(outputs, target_sizes=sizes)
        return [self._stretched(one["predicted_depth"].reshape(size)) for one, size in zip(found, sizes, strict=True)]

    def _stretched(self, predicted: Tensor) -> Float[np.ndarray, "h w"]:
        depth = predicted.float().cpu().numpy()
        inverse = 1 / np.maximum(depth, 1e-3) if self.metric else depth
        low, high = inverse.min(), inverse.max()
        return (inverse - low) / (high - low if high > low else 1)


class NormalEstimator:
    """Marigold's normals (Ke et al., arXiv 2505.09358), a pipeline of diffusers; one step, from fixed noise."""

    def __init__(self, path: str) -> None:
        from diffusers import MarigoldNormalsPipeline

        self.pipeline = _load(MarigoldNormalsPipeline, path, "path", NORMAL_MODEL)
        self.pipeline.set_progress_bar_config(disable=True)

    def normal(self, images: Sequence[Pixels]) -> list[Float[np.ndarray, "h w 3"]]:
        return _together(self._look, images)

    def _look(self, images: list[Pixels]) -> list[Float[np.ndarray, "h w 3"]]:
        generators = [torch.Generator().manual_seed(0) for _ in images]
        with torch.autocast(self.pipeline.device.type, enabled=False):
            found = self.pipeline(
                _pictures(images),
                num_inference_steps=1,
                batch_size=len(images),
                generator=generators,
                output_type="np",
            )
        normal = np.asarray(found.prediction, np.float32)  # x to the right, y up, z to the viewer
        return [*(normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6))]


class Segmenter:
    """A segmentation model of transformers with ADE20K's 150 classes in their order."""

    def __init__(self, path: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        self.model = _load(AutoModelForSemanticSegmentation, path, "path", CLASS_MODEL).eval()
        self.processor = _load(AutoImageProcessor, path, "path", CLASS_MODEL)
        if (number := self.model.config.num_labels) != 150:
            raise InputError(f"condition.path={path}: tells {number} classes apart; give a model with ADE20K's 150")

    def classes(self, images: Sequence[Pixels]) -> list[UInt8[np.ndarray, "h w"]]:
        return _together(self._look, images)

    def _look(self, images: list[Pixels]) -> list[UInt8[np.ndarray, "h w"]]:
        inputs = self.processor(images=_pictures(images), return_tensors="pt")
        outputs = _run(self.model, inputs)
        sizes = [image.shape[:2] for image in images]
        found = self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return [classes.cpu().numpy().astype(np.uint8) for classes in found]


class PoseEstimator:
    """A ViTPose of transformers, with 17 points (body) or COCO-WholeBody's 133 (hands and face as well)."""

    def __init__(self, path: str, people: str | None) -> None:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection, VitPoseForPoseEstimation

        self.model: Any = _load(VitPoseForPoseEstimation, path, "path", SKELETON_MODEL).eval()
        self.processor = _load(AutoImageProcessor, path, "path", SKELETON_MODEL)
        names = {len(COCO): COCO, len(WHOLE_BODY): WHOLE_BODY}
        if (number := self.model.config.num_labels) not in names:
            raise InputError(f"condition.path={path}: finds {number} points; give a model with COCO's 17 or 133")
        self.names = names[number]
        self.people = self.finder = None
        if people is not None:
            example = "PekingU/rtdetr_r50vd_coco_o365"
            self.people: Any = _load(AutoModelForObjectDetection, people, "people", example).eval()
            self.finder = _load(AutoImageProcessor, people, "people", example)

    def skeletons(self, images: Sequence[Pixels]) -> list[tuple[Joints, ...]]:
        return _together(self._look, images)

    def _look(self, images: list[Pixels]) -> list[tuple[Joints, ...]]:
        boxes = self._boxes(images)
        with_people = [row for row, found in enumerate(boxes) if len(found)]
        bodies: list[tuple[Joints, ...]] = [()] * len(images)
        if not with_people:
            return bodies
        boxes = [boxes[row] for row in with_people]
        inputs = self.processor(_pictures([images[row] for row in with_people]), boxes=boxes, return_tensors="pt")
        if getattr(self.model.config.backbone_config, "num_experts", 1) > 1:  # ViTPose++: the expert of COCO
            expert = 5 if self.names is WHOLE_BODY else 0
            inputs["dataset_index"] = torch.full((sum(map(len, boxes)),), expert)
        outputs = _run(self.model, inputs)
        found = self.processor.post_process_pose_estimation(outputs, boxes=boxes, threshold=SURE)
        for row, people in zip(with_people, found, strict=True):
            bodies[row] = tuple(body for body in map(self._body, people) if body)
        return bodies

    def _boxes(self, images: list[Pixels]) -> list[Float[np.ndarray, "n 4"]]:
        """The people in each of the images, as (left, top, width, height)."""
        sizes = [image.shape[:2] for image in images]
        if self.people is None or self.finder is None:
            return [np.array([[0, 0, width, height]], np.float32) for height, width in sizes]
        inputs = self.finder(images=_pictures(images), return_tensors="pt")
        outputs = _run(self.people, inputs)
        found = self.finder.post_process_object_detection(outputs, threshold=0.5, target_sizes=sizes)
        person = {number for number, name in self.people.config.id2label.items() if name == "person"}
        boxes = []
        for one in found:
            corners = [
                box for box, label in zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True) if label in person
            ]
            boxes.append(np.array([[a, b, c - a, d - b] for a, b, c, d in corners], np.float32).reshape(-1, 4))
        return boxes

    def _body(self, found: dict[str, Any]) -> Joints:
        points = zip(found["labels"].tolist(), found["keypoints"].tolist(), strict=True)
        body = {self.names[label]: (float(x) + 0.5, float(y) + 0.5) for label, (x, y) in points}
        for foot in FEET:
            body.pop(foot, None)
        if "left shoulder" in body and "right shoulder" in body:  # OpenPose's neck lies between them
            (a, b), (c, d) = body["left shoulder"], body["right shoulder"]
            body["neck"] = (a + c) / 2, (b + d) / 2
        return body
