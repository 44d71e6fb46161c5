"""Learned detectors of photos: tiny models with random weights, saved in the format that real ones come in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, MarigoldNormalsPipeline, UNet2DConditionModel
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from cnx.base import Base
from cnx.condition import Condition, Depth, Normal, Pose, Segmentation
from cnx.condition.detector import class_detector, depth_detector, skeleton_detector
from cnx.condition.photo import COCO, WHOLE_BODY, PoseEstimator, _together
from cnx.errors import InputError

PHOTO = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def save_depth(folder: Path, **settings) -> str:
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=8, **settings,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    DPTImageProcessor(size=size, ensure_multiple_of=14, keep_aspect_ratio=True).save_pretrained(folder)
    return str(folder)


def save_segmenter(folder: Path, labels: int) -> str:
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1], num_encoder_blocks=2, hidden_sizes=[8, 16], sr_ratios=[2, 1], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=labels,
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def save_pose(folder: Path, points: int) -> str:
    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        out_features=["stage1"],
    )  # fmt: skip
    config = VitPoseConfig(backbone_config=backbone, num_labels=points, scale_factor=4, use_simple_decoder=True)
    model = VitPoseForPoseEstimation(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head") and name.endswith("bias"):
                parameter.fill_(0.8)  # sure of everything
    model.save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return str(folder)


def save_finder(folder: Path, label: str) -> str:
    """Finds three of `label` in every picture."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=16, num_detection_tokens=3, id2label={0: label, 1: "kite"},
    )  # fmt: skip
    model = YolosForObjectDetection(config)
    with torch.no_grad():
        model.class_labels_classifier.layers[-1].bias[0] = 10.0
    model.save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def check_map(condition: Condition) -> np.ndarray:
    control_map = condition(PHOTO)
    assert control_map.shape == PHOTO.shape and control_map.dtype == np.uint8
    assert condition.compare(control_map, control_map).fidelity == pytest.approx(1, abs=1e-6)
    return control_map


def test_depth_is_stretched_and_metric_depth_is_inverted(tmp_path: Path) -> None:
    relative = check_map(Depth(save_depth(tmp_path / "relative")))
    assert relative.min() == 0 and relative.max() == 255 and (relative[..., 0] == relative[..., 2]).all()
    metric = check_map(Depth(save_depth(tmp_path / "metric", depth_estimation_type="metric", max_depth=20)))
    assert metric.min() == 0 and metric.max() == 255


def test_normals_come_from_depth_by_its_gradient(tmp_path: Path) -> None:
    control_map = check_map(Normal(save_depth(tmp_path / "depth"), from_depth=True))
    assert (control_map[..., 2] >= 128).all() and control_map[..., 0].std() > 0


def test_normals_come_from_a_pipeline_of_diffusers_and_are_the_same_each_time(tmp_path: Path, own_tiny: Base) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(dict(own_tiny.unet.config) | {"in_channels": 8})
    MarigoldNormalsPipeline(
        unet=unet,
        vae=own_tiny.vae,
        scheduler=DDIMScheduler.from_config(own_tiny.scheduler.config),
        text_encoder=own_tiny.text_encoder,
        tokenizer=own_tiny.tokenizer,
        default_processing_resolution=64,
    ).save_pretrained(tmp_path)
    control_map = check_map(Normal(str(tmp_path)))
    assert np.array_equal(control_map, Normal(str(tmp_path))(PHOTO)) and control_map.std() > 0
    for each in Normal(str(tmp_path)).annotate([PHOTO, PHOTO]):
        assert np.abs(each.astype(int) - control_map).max() <= 1


def test_classes_are_ade20ks(tmp_path: Path) -> None:
    check_map(Segmentation(save_segmenter(tmp_path / "ade", 150)))
    with pytest.raises(InputError, match="tells 19 classes apart"):
        Segmentation(save_segmenter(tmp_path / "cityscapes", 19))(PHOTO)


@pytest.mark.parametrize("points", [17, 133])
def test_poses_are_of_the_body_or_of_hands_and_face_as_well(points: int, tmp_path: Path) -> None:
    estimator = PoseEstimator(save_pose(tmp_path / "pose", points), people=None)
    ((body,),) = estimator.skeletons([PHOTO])
    assert "neck" in body and set(body) - {"neck"} <= set(WHOLE_BODY if points == 133 else COCO)
    assert ("left thumb 1" in body) == ("face 30" in body) == (points == 133)
    assert not any(name.startswith("foot") for name in body)
    shoulders = np.array([body["left shoulder"], body["right shoulder"]])
    assert body["neck"] == pytest.approx(tuple(shoulders.mean(0)))
    control_map = Pose(str(tmp_path / "pose"))(PHOTO)
    assert control_map.shape == PHOTO.shape and control_map.any()


def test_only_people_have_poses(tmp_path: Path) -> None:
    path = save_pose(tmp_path / "pose", 17)
    assert len(PoseEstimator(path, save_finder(tmp_path / "people", "person")).skeletons([PHOTO])[0]) == 3
    assert PoseEstimator(path, save_finder(tmp_path / "dogs", "dog")).skeletons([PHOTO, PHOTO]) == [(), ()]


@pytest.mark.parametrize("kind", [Depth, Normal, Segmentation, Pose])
def test_photos_of_one_size_are_looked_at_together_and_seen_as_one_by_one(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(1)
    photos = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((60, 80), (48, 48), (60, 80), (60, 80))]
    path = str(tmp_path)
    if kind is Segmentation:
        condition, detector = Segmentation(save_segmenter(tmp_path, 150)), class_detector(path)
    elif kind is Pose:
        condition, detector = Pose(save_pose(tmp_path, 17)), skeleton_detector(path, None)
    else:
        save_depth(tmp_path)
        condition, detector = Depth(path) if kind is Depth else Normal(path, from_depth=True), depth_detector(path)
    singly = [condition(photo) for photo in photos]
    sizes: list[int] = []

    def note(module: torch.nn.Module, arguments: tuple, given: dict[str, torch.Tensor]) -> None:
        sizes.append(len(given["pixel_values"]))

    counting = detector.model.register_forward_pre_hook(note, with_kwargs=True)  # type: ignore[attr-defined]
    condition.annotate(photos)
    assert sizes == [1, 1, 1, 1], "without a GPU"
    sizes.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # the model is loaded, on the CPU
    together = condition.annotate(photos)
    counting.remove()
    assert sizes == [3, 1]
    for one, other in zip(singly, together, strict=True):
        assert one.shape == other.shape and (np.abs(one.astype(int) - other) > 1).mean() < 1e-3


def test_a_batch_that_does_not_fit_is_looked_at_in_parts() -> None:
    photos = [np.full((4, 4, 3), value, np.uint8) for value in range(7)]
    sizes: list[int] = []

    def look(images: list[np.ndarray], room: int = 2) -> list[int]:
        sizes.append(len(images))
        if len(images) > room:
            raise torch.OutOfMemoryError
        return [int(image[0, 0, 0]) for image in images]

    assert _together(look, photos, at_once=7) == list(range(7))
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    with pytest.raises(torch.OutOfMemoryError):
        _together(lambda images: look(images, room=0), photos, at_once=2)


def test_another_number_of_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="finds 21 points"):
        Pose(save_pose(tmp_path / "hand", 21))(PHOTO)


@pytest.mark.parametrize("condition", [Depth, Normal, Segmentation, Pose])
def test_without_weights_the_error_says_what_to_download_and_where_to(condition: type, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"condition\.path=.*hf download \S+/\S+ --local-dir models/.*condition\.path="
    ) as error:
        condition(str(tmp_path / "nothing"))(PHOTO)
    assert "\n" not in str(error.value)
