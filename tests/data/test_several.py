"""Data sets of the same pictures, each with maps of its own, put together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnx.base import Base
from cnx.condition import Canny, Several
from cnx.condition.tile import Tile
from cnx.data.folder import Item, load_control, load_pair
from cnx.data.module import ControlData
from cnx.data.synthetic import Birds
from cnx.errors import InputError

COUNT = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pictures under edges and under colours."""
    home = tmp_path_factory.mktemp("several")
    for name, condition in (("canny", Canny()), ("tile", Tile())):
        for kind in ("source", "target"):
            (home / name / kind).mkdir(parents=True)
        lines = []
        for index in range(COUNT):
            target = Birds().draw(index, 64).target
            Image.fromarray(target).save(home / name / "target" / f"{index}.png")
            Image.fromarray(condition(target)).save(home / name / "source" / f"{index}.png")
            lines.append(json.dumps({"source": f"{index}.png", "target": f"{index}.png", "prompt": f"birds {index}"}))
        (home / name / "prompt.json").write_text("\n".join(lines))
    return {"canny": home / "canny", "tile": home / "tile"}


def prepared(root: object, base: Base, cache: Path, **settings: object) -> ControlData:
    given = {"heldout": 0.5, "batch_size": 2, "cache_folder": cache, **settings}
    data = ControlData(root, 64, **given)  # pyright: ignore[reportArgumentType]
    data.prepare(base)
    return data


def batches(data: ControlData) -> list[torch.Tensor]:
    return [batch.control for batch in data.train_dataloader()]


def test_each_picture_has_the_maps_of_all_in_their_order(folders: dict[str, Path], tiny: Base, tmp_path: Path) -> None:
    canny, tile = (prepared(folders[name], tiny, tmp_path) for name in ("canny", "tile"))
    both = prepared([folders["canny"], folders["tile"]], tiny, tmp_path)
    swapped = prepared([folders["tile"], folders["canny"]], tiny, tmp_path)
    one, other = canny.heldout(9).control, tile.heldout(9).control
    assert torch.equal(both.heldout(9).control, torch.cat([one, other], dim=1))
    assert torch.equal(swapped.heldout(9).control, torch.cat([other, one], dim=1))
    for x, y, stacked in zip(batches(canny), batches(tile), batches(both), strict=True):
        assert torch.equal(stacked, torch.cat([x, y], dim=1))
    assert (canny.maps, both.maps) == (1, 2)
    assert both.content != canny.content != tile.content and both.content != swapped.content


def test_a_list_of_one_is_that_one(folders: dict[str, Path], tiny: Base, tmp_path: Path) -> None:
    one, same = prepared(folders["canny"], tiny, tmp_path), prepared([folders["canny"]], tiny, tmp_path)
    assert one.content == same.content and one.items == same.items
    assert torch.equal(one.heldout(9).control, same.heldout(9).control)


def test_crops_and_flips_are_the_same_of_all_maps(folders: dict[str, Path], tiny: Base, tmp_path: Path) -> None:
    settings = {"random_crop": True, "random_flip": True}
    both = prepared([folders["canny"], folders["canny"]], tiny, tmp_path, **settings)
    for control in batches(both):
        assert torch.equal(control[:, :3], control[:, 3:])


def test_drawn_scenes_have_the_maps_of_all_their_conditions(tiny: Base, tmp_path: Path) -> None:
    scenes = Birds(condition=Several(canny=Canny(), tile=Tile()))
    data = prepared(tmp_path / "birds", tiny, tmp_path, limit=COUNT, scenes=scenes)
    heldout = data.heldout(1)
    drawn = Birds().draw(heldout.index[0], 64)
    assert torch.equal(heldout.control[0, :3].permute(1, 2, 0), torch.tensor(drawn.source) / 255)
    assert torch.equal(heldout.control[0, 3:].permute(1, 2, 0), torch.tensor(Tile()(drawn.target)) / 255)
    assert data.maps == 2


def test_a_map_of_another_size_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(small)
    source, target = folders["canny"] / "source" / "0.png", folders["canny"] / "target" / "0.png"
    item = Item(source, target, "", more=(small,))
    assert load_control(item, 64).shape == (64, 64, 6)
    with pytest.raises(InputError, match=r"small\.png.*32x32"):
        load_pair(item, 64)


def test_a_missing_map_is_named_or_left_out(folders: dict[str, Path], tiny: Base, tmp_path: Path) -> None:
    shutil.copytree(folders["tile"], tmp_path / "tile")
    (tmp_path / "tile" / "source" / "3.png").unlink()
    roots = [folders["canny"], tmp_path / "tile"]
    with pytest.raises(InputError, match=r"tile.prompt\.json:4: source file .*3\.png is missing"):
        prepared(roots, tiny, tmp_path)
    data = prepared(roots, tiny, tmp_path, on_error="skip")
    assert len(data.skipped) == 1 and str(tmp_path / "tile" / "source" / "3.png") in data.skipped[0]
    assert len(data.train_items) + len(data.heldout_items) == COUNT - 1


def test_sets_of_other_pictures_are_refused(folders: dict[str, Path], tiny: Base, tmp_path: Path) -> None:
    shutil.copytree(folders["tile"], tmp_path / "tile")
    listing = tmp_path / "tile" / "prompt.json"
    lines = listing.read_text().splitlines()
    roots = [folders["canny"], tmp_path / "tile"]
    listing.write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"6 items in .*canny, 5 in .*tile; give data sets of the same pictures"):
        prepared(roots, tiny, tmp_path)
    listing.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(InputError, match=r"item 1 is .*0\.png in .*canny, and another picture, .*1\.png, in .*tile"):
        prepared(roots, tiny, tmp_path)
    with pytest.raises(InputError, match=r"data\.root=\[\]"):
        ControlData([], 64)
