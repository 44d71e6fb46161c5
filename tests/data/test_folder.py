import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cnx.data.folder import Item, check_resolution, load_image, load_pair, read_folder
from cnx.errors import InputError

GRADIENT = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))  # 48 rows of 64 grey levels


def write_lines(root: Path, *lines: object) -> Path:
    """prompt.json of the given lines (objects become JSON), and the two image files a.png and b.png."""
    for kind in ("source", "target"):
        (root / kind).mkdir(exist_ok=True)
        Image.fromarray(GRADIENT).save(root / kind / "a.png")
        Image.fromarray(GRADIENT).save(root / kind / "b.png")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "prompt.json").write_text(text, encoding="utf-8")
    return root


def entry(name: str = "a.png", prompt: str = "a circle", prefix: bool = True) -> dict[str, str]:
    source, target = (f"source/{name}", f"target/{name}") if prefix else (name, name)
    return {"source": source, "target": target, "prompt": prompt}


def error_of(call, *args) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_items_are_read_in_order_with_or_without_prefix(tmp_path):
    root = write_lines(tmp_path, entry("b.png", "two"), "", "   ", entry("a.png", "", prefix=False), "")
    assert read_folder(root) == [
        Item(root / "source/b.png", root / "target/b.png", "two"),
        Item(root / "source/a.png", root / "target/a.png", ""),
    ]


def test_prompts_keep_every_character(tmp_path):
    prompt = "ein „Vogel“\u2028 \\ 鳥"
    root = write_lines(tmp_path, json.dumps(entry(prompt=prompt), ensure_ascii=False))
    assert read_folder(root)[0].prompt == prompt


def test_limit_takes_the_first_items(tmp_path):
    root = write_lines(tmp_path, entry("a.png"), entry("b.png"), "not JSON, but never reached")
    assert [item.source.name for item in read_folder(root, 1)] == ["a.png"]
    assert "data.limit=0" in error_of(read_folder, root, 0)


def test_missing_root_and_missing_listing_name_what_was_expected(tmp_path):
    assert str(tmp_path / "nowhere") in error_of(read_folder, tmp_path / "nowhere")
    message = error_of(read_folder, tmp_path)
    assert str(tmp_path / "prompt.json") in message and "source, target, prompt" in message
    (tmp_path / "prompt.json").write_text("\n")
    assert "no items" in error_of(read_folder, tmp_path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"source": "a.png",', "not JSON"),
        ("[]", "list"),
        ({"source": "a.png", "target": "a.png"}, "'prompt'"),
        ({"source": "a.png", "target": 3, "prompt": ""}, "3"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, complaint):
    message = error_of(read_folder, write_lines(tmp_path, entry(), "", line))
    assert f"{tmp_path / 'prompt.json'}:3:" in message and complaint in message


def test_a_missing_image_is_named_unless_items_are_skipped(tmp_path):
    root = write_lines(tmp_path, entry("a.png"), entry("gone.png"))
    message = error_of(read_folder, root)
    assert f"{root / 'prompt.json'}:2:" in message and str(root / "source/gone.png") in message
    assert [item.target.name for item in read_folder(root, None, "skip")] == ["a.png", "gone.png"]


def test_every_kind_of_image_becomes_the_same_rgb(tmp_path):
    rgb = np.repeat(GRADIENT[..., None], 3, axis=2)
    wide = GRADIENT.astype(np.uint16) * 256 + 200  # the low byte must not matter
    images = {
        "grey.png": Image.fromarray(GRADIENT),
        "colour.png": Image.fromarray(rgb),
        "palette.png": Image.fromarray(GRADIENT).convert("P"),
        "opaque.png": Image.fromarray(rgb).convert("RGBA"),
        "wide.png": Image.fromarray(wide),
        "wide.tiff": Image.fromarray(wide),
        "twelve_bits.tiff": Image.fromarray(wide >> 4),
        "eight_bits_in_sixteen.png": Image.fromarray(wide >> 8),
        "colour.webp": Image.fromarray(rgb),
    }
    for name, image in images.items():
        image.save(tmp_path / name, lossless=True)  # webp's; the others have no such option
    cv2.imwrite(str(tmp_path / "wide_colour.png"), np.repeat(wide[..., None], 3, axis=2))
    assert Image.open(tmp_path / "palette.png").mode == "P" and Image.open(tmp_path / "wide.png").mode == "I;16"
    for path in sorted(tmp_path.iterdir()):
        read = load_image(path)
        assert read.dtype == np.uint8, path.name
        np.testing.assert_array_equal(read, rgb, err_msg=path.name)


def test_channels_are_red_green_blue(tmp_path):
    Image.new("RGB", (8, 8), (250, 100, 3)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0, 0].tolist() == [250, 100, 3]


def test_transparent_parts_are_white_in_a_target_and_black_in_a_map(tmp_path):
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:8] = (10, 20, 30, 255)
    pixels[8:] = (200, 200, 200, 0)
    item = Item(tmp_path / "map.png", tmp_path / "target.png", "")
    Image.fromarray(pixels).save(item.source)
    Image.fromarray(pixels).quantize().save(item.target)  # a palette with a transparent entry
    control, target = load_pair(item, 16)
    assert control[0, 0].tolist() == target[0, 0].tolist() == [10, 20, 30]
    assert control[15, 0].tolist() == [0, 0, 0] and target[15, 0].tolist() == [255, 255, 255]


def test_a_photo_is_turned_upright(tmp_path):
    upright = Image.fromarray(GRADIENT).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise by 90 degrees to see it upright
    upright.rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.asarray(upright))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_truncated_image_is_an_error_wherever_it_is_cut(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    for kept in (0, 1, 20, len(data) // 3, len(data) // 2, len(data) * 9 // 10, len(data) - 40):
        path.write_bytes(data[:kept])
        assert str(path) in error_of(load_image, path)


def test_what_is_no_image_is_an_error(tmp_path):
    (tmp_path / "a.png").write_text("<html>not found</html>")
    assert str(tmp_path / "a.png") in error_of(load_image, tmp_path / "a.png")
    assert "b.png" in error_of(load_image, tmp_path / "b.png")


def test_map_and_target_of_different_size_are_named_with_both_sizes(tmp_path):
    item = Item(tmp_path / "map.png", tmp_path / "target.png", "")
    Image.new("L", (64, 32)).save(item.source)
    Image.new("L", (64, 40)).save(item.target)
    message = error_of(load_pair, item, 32)
    assert "64x32" in message and "64x40" in message and str(item.source) in message and str(item.target) in message


def test_images_of_the_wanted_size_are_not_touched(tmp_path):
    item = Item(tmp_path / "map.png", tmp_path / "target.png", "")
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(item.source)
    Image.fromarray(255 - pixels).save(item.target)
    control, target = load_pair(item, 16)
    np.testing.assert_array_equal(control, pixels)
    np.testing.assert_array_equal(target, 255 - pixels)


@pytest.mark.parametrize("size", [(64, 64), (192, 128), (128, 200), (16, 16)])
def test_map_and_target_stay_aligned_when_cropped_and_resized(tmp_path, size):
    """A white block that fills the right lower quarter of the centre square fills that quarter afterwards."""
    width, height = size
    side = min(size)
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[height // 2 : (height + side) // 2, width // 2 : (width + side) // 2] = 255
    item = Item(tmp_path / "map.png", tmp_path / "target.png", "")
    Image.fromarray(pixels).save(item.source)
    Image.fromarray(pixels).save(item.target)
    for image in load_pair(item, 32):
        assert image.shape == (32, 32, 3)
        np.testing.assert_array_equal(image[..., 0] > 127, np.indices((32, 32)).min(axis=0) >= 16)


def test_a_thin_line_survives_shrinking(tmp_path):
    item = Item(tmp_path / "map.png", tmp_path / "target.png", "")
    for column in range(4):
        pixels = np.zeros((64, 64), dtype=np.uint8)
        pixels[:, 20 + column] = 255
        Image.fromarray(pixels).save(item.source)
        Image.fromarray(pixels).save(item.target)
        assert (load_pair(item, 16)[0][:, 5] > 0).all()


@pytest.mark.parametrize(("wrong", "nearest"), [(100, ("96", "104")), (7, ("8",)), (0, ("8",)), (-8, ("8",))])
def test_a_resolution_that_8_does_not_divide_is_refused_with_its_neighbours(wrong, nearest):
    message = error_of(check_resolution, wrong)
    assert f"data.resolution={wrong}" in message and all(value in message for value in nearest)
    check_resolution(96)
