import cv2
import numpy as np
import pytest

from cnx.condition import Inpaint
from cnx.condition.inpaint import MARK, masked
from cnx.errors import InputError


def test_what_is_not_marked_is_the_picture_and_the_mask_can_be_read_back(birds: list[np.ndarray]) -> None:
    shares = []
    for photo in birds:
        control_map = Inpaint()(photo)
        hidden = masked(control_map)
        assert np.array_equal(control_map[~hidden], photo[~hidden]) and (control_map[hidden] == MARK).all()
        shares.append(hidden.mean())
    assert all(0.1 <= share <= 0.5 for share in shares) and len(set(shares)) == 3
    assert masked(Inpaint(share=(0.25, 0.25))(birds[0])).mean() == pytest.approx(0.25, abs=0.01)
    with pytest.raises(InputError, match=r"condition\.share=\[0.6, 0.2\]"):
        Inpaint(share=(0.6, 0.2))


def test_a_picture_that_is_magenta_itself_is_not_taken_for_a_mask() -> None:
    photo = np.full((64, 64, 3), 90, np.uint8)
    photo[3, 3] = photo[60, 50] = MARK
    control_map = Inpaint(share=(0.0, 0.0))(photo)
    assert not (control_map == MARK).all(axis=2).any() and np.abs(control_map.astype(int) - photo).max() == 1


def test_marks_that_a_person_made_stay_as_they_are(birds: list[np.ndarray]) -> None:
    marked = birds[0].copy()
    marked[40:60, 40:60] = MARK
    assert np.array_equal(Inpaint()(marked), marked)


def test_only_what_is_not_masked_is_compared(birds: list[np.ndarray]) -> None:
    photo, other = birds[0], birds[1]
    wanted = Inpaint()(photo)
    hidden = masked(wanted)[:, :, None]
    obeys, ignores = (
        Inpaint().judge(x, wanted) for x in (np.where(hidden, other, photo), np.where(hidden, photo, other))
    )
    assert obeys.fidelity == pytest.approx(1.0) and obeys.published > 58 and ignores.fidelity < 0.7
    everything = np.broadcast_to(MARK, photo.shape).copy()
    assert Inpaint().judge(other, everything).fidelity == 1.0


def test_the_mask_survives_a_resize_and_jpeg(birds: list[np.ndarray]) -> None:
    control_map = Inpaint()(birds[0])
    small = cv2.resize(control_map, (64, 64), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imdecode(cv2.imencode(".jpg", control_map, [cv2.IMWRITE_JPEG_QUALITY, 95])[1], cv2.IMREAD_COLOR)
    share = masked(control_map).mean()
    assert masked(small).mean() == pytest.approx(share, abs=0.05) and masked(jpeg).mean() == pytest.approx(
        share, abs=0.05
    )


def test_the_masked_part_is_shown_as_checks_of_grey(birds: list[np.ndarray]) -> None:
    control_map = Inpaint()(birds[0])
    shown, hidden = Inpaint().display(control_map), masked(control_map)
    assert set(np.unique(shown[hidden])) == {153, 204} and np.array_equal(shown[~hidden], birds[0][~hidden])
