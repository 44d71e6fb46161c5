import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from cnx.errors import InputError
from cnx.metric import colour_overlap, psnr, ssim

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 255, (40, 56, 3), dtype=np.uint8)


def noisy(by: int) -> np.ndarray:
    noise = np.random.default_rng(1).integers(-by, by + 1, PICTURE.shape)
    return np.clip(PICTURE + noise, 0, 255).astype(np.uint8)


def test_ssim_is_the_literature_s() -> None:
    a, b = (torch.from_numpy(x).permute(2, 0, 1)[None].float() for x in (noisy(40), PICTURE))
    assert ssim(noisy(40), PICTURE) == pytest.approx(
        float(structural_similarity_index_measure(a, b, data_range=255.0)), abs=1e-5
    )
    first = structural_similarity_index_measure(a[:, :1], b[:, :1], data_range=255.0)
    assert ssim(noisy(40)[:, :, :1], PICTURE[:, :, :1]) == pytest.approx(float(first), abs=1e-5)


def test_equal_pictures_are_best_and_noise_makes_them_worse_step_by_step() -> None:
    assert ssim(PICTURE, PICTURE) == pytest.approx(1.0)
    assert psnr(PICTURE, PICTURE) == pytest.approx(20 * np.log10(255) + 10 * np.log10(12))
    for measure in (ssim, psnr):
        scores = [measure(noisy(by), PICTURE) for by in (0, 5, 20, 80)]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4


def test_what_is_inverted_is_worse_than_nothing_at_all() -> None:
    assert ssim(255 - PICTURE, PICTURE) < 0 < ssim(np.full_like(PICTURE, 128), PICTURE) + 0.05


def test_psnr_is_that_of_its_definition() -> None:
    off = PICTURE.clip(0, 245) + np.uint8(10)
    assert psnr(off, PICTURE.clip(0, 245)) == pytest.approx(20 * np.log10(255 / 10))


def test_only_what_is_asked_for_counts() -> None:
    where = np.zeros(PICTURE.shape[:2], bool)
    where[:, :20] = True
    spoiled = PICTURE.copy()
    spoiled[:, 28:] = 0  # beyond the window of SSIM
    assert ssim(spoiled, PICTURE, where) == pytest.approx(1.0) and ssim(spoiled, PICTURE) < 0.8
    assert psnr(spoiled, PICTURE, where) == psnr(PICTURE, PICTURE) > psnr(spoiled, PICTURE)


def test_a_picture_below_the_window_is_bad_input() -> None:
    with pytest.raises(InputError, match="8 x 40 px"):
        ssim(PICTURE[:, :8], PICTURE[:, :8])


def test_colours_are_shared_wherever_they_stand() -> None:
    shuffled = RNG.permutation(PICTURE.reshape(-1, 3)).reshape(PICTURE.shape)
    assert colour_overlap(shuffled, PICTURE) == pytest.approx(1.0)
    red, blue = (np.full((16, 16, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    assert colour_overlap(red, blue) < 0.01 and colour_overlap(red, red) == pytest.approx(1.0)
    half = red.copy()
    half[8:] = blue[8:]
    assert colour_overlap(half, red) == pytest.approx(0.5, abs=0.01)
