"""What is wrong with a data set is found, and nothing else."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cnx.condition import Canny
from cnx.data.folder import Item, load_image
from cnx.data.prepare.pair import encode
from cnx.data.survey import judge_fit, near_copies, survey
from cnx.data.synthetic import Birds


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Sixty birds with their edges, as JPEG and PNG."""
    found = []
    for number in range(60):
        picture = Birds().draw(number, 128).target
        item = Item(tmp_path / f"{number}_map.png", tmp_path / f"{number}.jpg", "a bird")
        item.source.write_bytes(encode(Canny()(picture), "png"))
        item.target.write_bytes(encode(picture, "jpg"))
        found.append(item)
    return found


def test_a_good_data_set_has_nothing_wrong(items: list[Item]) -> None:
    found = survey(items, heldout=0.2, workers=2)
    assert not found.unusable and not found.empty.any() and not found.blank.any()
    assert (found.size == 128).all() and (found.map_size == 128).all()
    assert 0 < found.held_out.sum() < 30
    assert near_copies(found, items) == []
    fit = judge_fit(items, found, Canny(), None, 2)
    assert fit.whole and fit.misfits == [] and np.median(fit.own) > 0.9


def test_damage_is_found_in_maps_and_pictures(items: list[Item]) -> None:
    items[0].source.unlink()
    items[1].target.write_bytes(items[1].target.read_bytes()[:2000])
    Image.fromarray(load_image(items[2].source)).resize((64, 128)).save(items[2].source)
    items[3].target.write_text("not a picture")
    Image.new("RGB", (128, 128)).save(items[4].source)
    Image.new("RGB", (128, 128), "red").save(items[5].target)
    found = survey(items, heldout=0.2, workers=2)
    assert sorted(found.unusable) == [0, 1, 2, 3]
    assert str(items[0].source) in found.unusable[0] and "truncated" in found.unusable[1]
    assert "64x128" in found.unusable[2] and str(items[3].target) in found.unusable[3]
    assert np.flatnonzero(found.empty & found.usable).tolist() == [4]
    assert np.flatnonzero(found.blank & found.usable).tolist() == [5]


def test_a_map_of_another_picture_or_turned_round_does_not_fit(items: list[Item]) -> None:
    swapped = [*items]
    swapped[3] = Item(items[4].source, items[3].target, "")
    turned = items[9].source.with_name("turned.png")
    Image.fromarray(np.ascontiguousarray(load_image(items[9].source)[::-1])).save(turned)
    swapped[9] = Item(turned, items[9].target, "")
    found = survey(swapped, heldout=0.2, workers=2)
    assert judge_fit(swapped, found, Canny(), None, 2).misfits == [3, 9]
    shifted = [Item(items[i - 1].source, items[i].target, "") for i in range(60)]
    assert not judge_fit(shifted, found, Canny(), None, 2).whole


def test_copies_across_the_split_are_found_however_they_were_saved(items: list[Item]) -> None:
    before = survey(items, heldout=0.3, workers=2)
    held = np.flatnonzero(before.held_out)[:2].tolist()
    copies = []
    for at, save in zip(held, ({"quality": 70}, None), strict=True):
        photo, file = Image.fromarray(load_image(items[at].target)), items[at].target
        for number in range(40):  # until the split puts one on the other side
            other = file.with_name(f"{at}_copy{number}.{'jpg' if save else 'png'}")
            small = photo if save else photo.resize((120 - number, 120 - number), Image.Resampling.BICUBIC)
            small.save(other, **({"quality": 70 + number % 25} if save else {}))
            blank = other.with_name(f"{other.stem}_map.png")
            Image.fromarray(cv2.Canny(np.asarray(small), 100, 200)).save(blank)
            if not survey([Item(blank, other, "")], heldout=0.3, workers=1).held_out[0]:
                break
        copies.append(Item(blank, other, ""))
    every = [*items, *copies]
    found = survey(every, heldout=0.3, workers=2)
    assert near_copies(found, every) == [(held[0], 60), (held[1], 61)]
