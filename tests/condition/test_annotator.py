"""Learned detectors, on weights of a test's choosing in the files of the released ones."""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from torch import nn

import cnx.condition.annotator
import cnx.condition.hough
from cnx.condition import Condition, FakeScribble, Hough, Lineart, LineartAnime, Scribble, SoftEdge
from cnx.errors import InputError

needs_extra = pytest.mark.skipif(find_spec("controlnet_aux") is None, reason="needs the extra annotators")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the detectors look at a picture at 128 px, a sixteenth of the work."""
    for module in (cnx.condition.annotator, cnx.condition.hough):
        monkeypatch.setattr(module, "RESOLUTION", 128)


def write(model: nn.Module, file: Path, values: dict[str, float | list[float]]) -> None:
    """Save weights that are zero, but for norms' variances and the parameters whose names end as a key of `values`.

    One number a tensor is stored: the files are small whatever the detector.
    """

    def constant(name: str, shape: torch.Size) -> torch.Tensor:
        given = [value for end, value in values.items() if name.endswith(end)]
        return torch.tensor(given[0] if given else float(name.endswith("running_var"))).expand(shape)

    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: constant(name, value.shape) for name, value in model.state_dict().items()}, file)


def library(module: str) -> object:
    with warnings.catch_warnings(action="ignore"):
        return __import__(f"controlnet_aux.{module}", fromlist=["*"])


@pytest.fixture(scope="module")
def hed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HED that means the brightness of a place: 1 where it is 255, and hardly anything where it is 0."""
    folder = tmp_path_factory.mktemp("hed")
    model = library("hed").ControlNetHED_Apache2()  # type: ignore[attr-defined]
    means = {
        f"{name}.weight": 1 / (module.in_channels * module.kernel_size[0] ** 2)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    steep = {f"block{i}.projection.weight": 20 / 255 / [64, 128, 256, 512, 512][i - 1] for i in range(1, 6)}
    write(model, folder / "ControlNetHED.pth", steep | {"projection.bias": -10.0} | means)
    return folder


@needs_extra
def test_hed_is_read_and_asked_about_the_photo(hed: Path) -> None:
    photo = np.zeros((128, 192, 3), np.uint8)
    photo[:, 96:] = 255
    control_map = SoftEdge(str(hed))(photo)
    assert control_map.shape == photo.shape and control_map.dtype == np.uint8
    assert control_map[64, 24].max() < 10 and control_map[64, 168].min() > 245
    assert set(np.unique(SoftEdge(str(hed), levels=3)(photo))) <= {0, 128, 255}


@needs_extra
def test_scribbles_stand_on_the_learned_soft_edges(hed: Path) -> None:
    photo = np.zeros((128, 128, 3), np.uint8)
    photo[:, 60:64] = 255
    for scribble in (Scribble(str(hed)), FakeScribble(str(hed), masked=0, shake=0)):
        assert scribble.edges.learned is not None
        strokes = scribble.ridges(photo) > 0.3
        assert strokes[40:90, 58:66].any(axis=1).all(), "the crest is the stripe itself, not its sides"


@needs_extra
def test_line_art_is_turned_to_white_on_black(tmp_path: Path) -> None:
    model = library("lineart").Generator(3, 1, 3)  # type: ignore[attr-defined]
    write(model, tmp_path / "sk_model.pth", {"model4.1.bias": -20.0})  # all ink
    write(model, tmp_path / "sk_model2.pth", {"model4.1.bias": 20.0})  # all paper
    for coarse, expected in ((False, 255), (True, 0)):
        control_map = Lineart(str(tmp_path), coarse=coarse)(np.full((96, 128, 3), 90, np.uint8))
        assert control_map.shape == (96, 128, 3) and (control_map == expected).all()


@needs_extra
def test_anime_line_art_is_turned_to_white_on_black(tmp_path: Path) -> None:
    norm_layer = partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    model = library("lineart_anime").UnetGenerator(3, 1, 8, 64, norm_layer=norm_layer)  # type: ignore[attr-defined]
    write(model, tmp_path / "netG.pth", {"model.model.3.bias": 20.0})  # all paper
    control_map = LineartAnime(str(tmp_path))(np.full((96, 128, 3), 90, np.uint8))
    assert control_map.shape == (96, 128, 3) and not control_map.any()


@needs_extra
def test_m_lsd_s_lines_are_scaled_to_the_photo_and_none_is_no_error(tmp_path: Path) -> None:
    module = library("mlsd.models.mbv2_mlsd_large")
    model = module.MobileV2_MLSD_Large()  # type: ignore[attr-defined]
    photo = np.full((96, 192, 3), 90, np.uint8)
    # Of the 9 channels that are read: the score, then from each point (x, y) at half size to the two ends.
    read = [5.0, -20.0, 0.0, 20.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    write(model, tmp_path / "mlsd_large_512_fp32.pth", {"block23.conv3.bias": [0.0] * 7 + read})
    lines = Hough(str(tmp_path)).lines(photo)
    assert len(lines) == 200 and lines[:, 2] - lines[:, 0] == pytest.approx(2 * 40 * 192 / 256)
    assert np.array_equal(lines[:, 1], lines[:, 3]), "level"
    control_map = Hough(str(tmp_path))(photo)
    assert control_map.shape == photo.shape and control_map.max() == 255
    assert not Hough(str(tmp_path), min_score=0.999)(photo).any()


def learned(path: str) -> dict[str, Callable[[], Condition]]:
    return {
        "ControlNetHED.pth": lambda: SoftEdge(path),
        "sk_model.pth": lambda: Lineart(path),
        "netG.pth": lambda: LineartAnime(path),
        "mlsd_large_512_fp32.pth": lambda: Hough(path),
    }


def test_what_is_missing_is_named_with_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, says in ((str(tmp_path), "in that folder"), (str(tmp_path / "none"), "no such folder")):
        for file, make in learned(path).items():
            with pytest.raises(InputError, match=says) as error:
                make()
            message = str(error.value)
            assert path in message and file in message and "lllyasviel/Annotators" in message and "\n" not in message
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)  # as if it were not installed
    for make in learned("lllyasviel/Annotators").values():
        with pytest.raises(InputError, match=r"pip install -e '.\[annotators\]'"):
            make()


@needs_extra
def test_without_a_network_the_message_says_what_to_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for file, make in learned("owner/name").items():
        with pytest.raises(InputError, match="not to be had from the hub; download") as error:
            make()
        assert file in str(error.value)


@needs_extra
@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_a_file_that_holds_no_weights_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "ControlNetHED.pth"
    if content is None:
        torch.save({"another": torch.zeros(3)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"ControlNetHED\.pth there cannot be loaded as weights of HEDdetector"):
        SoftEdge(str(tmp_path))
