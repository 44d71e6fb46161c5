"""What sees the geometry of pictures: the network of drawn scenes that ships with the repository, or models of photos.

Nothing heavy is imported before a detector is asked for: the processes that draw synthetic pictures need none.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from cnx.condition.condition import Pixels
from cnx.condition.geometry import Joints

if TYPE_CHECKING:
    from cnx.condition.scene_net import SceneNet

SCENES = "pretrained/tiny_scenes"
# Models of photos to begin with, by hub id.
DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
NORMAL_MODEL = "prs-eth/marigold-normals-v1-1"
CLASS_MODEL = "openmmlab/upernet-convnext-small"
SKELETON_MODEL = "usyd-community/vitpose-base-simple"


class DepthDetector(Protocol):
    def nearness(self, images: Sequence[Pixels]) -> list[Float[np.ndarray, "h w"]]: ...


class NormalDetector(Protocol):
    def normal(self, images: Sequence[Pixels]) -> list[Float[np.ndarray, "h w 3"]]: ...


class ClassDetector(Protocol):
    def classes(self, images: Sequence[Pixels]) -> list[UInt8[np.ndarray, "h w"]]: ...


class SkeletonDetector(Protocol):
    def skeletons(self, images: Sequence[Pixels]) -> list[tuple[Joints, ...]]: ...


@lru_cache(maxsize=4)
def depth_detector(path: str) -> DepthDetector:
    """The detector at `path`; these four raise InputError where there is none, or it cannot be loaded."""
    if net := _scene_net(path):
        return net
    from cnx.condition.photo import DepthEstimator

    return DepthEstimator(path)


@lru_cache(maxsize=4)
def normal_detector(path: str) -> NormalDetector:
    if net := _scene_net(path):
        return net
    from cnx.condition.photo import NormalEstimator

    return NormalEstimator(path)


@lru_cache(maxsize=4)
def class_detector(path: str) -> ClassDetector:
    if net := _scene_net(path):
        return net
    from cnx.condition.photo import Segmenter

    return Segmenter(path)


@lru_cache(maxsize=4)
def skeleton_detector(path: str, people: str | None) -> SkeletonDetector:
    if net := _scene_net(path):
        return net
    from cnx.condition.photo import PoseEstimator

    return PoseEstimator(path, people)


@lru_cache(maxsize=4)
def _scene_net(path: str) -> "SceneNet | None":
    """The network of drawn scenes at `path`, if that is one."""
    from cnx.base.base import find_folder

    folder = find_folder(path)
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return None  # whoever reads it next says what is wrong with it
    if settings.get("architecture") != "SceneNet" or folder is None:
        return None
    from cnx.condition.scene_net import SceneNet

    return SceneNet.load(folder)
