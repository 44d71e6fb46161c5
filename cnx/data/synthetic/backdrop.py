"""Skies and what lies under them, in soft steps: edges should come from the birds, not from the weather."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

Colour = tuple[int, int, int]
SHIFT = 4  # cv2 takes positions in 1/16 pixel
SOFT = 128  # soft things are drawn at this side and enlarged, so that they look the same at every size


@dataclass(frozen=True)
class Mood:
    """One colouring of a sky. stops: from zenith to horizon; hills: far to near."""

    sky: str
    stops: tuple[Colour, ...]
    cloud: Colour
    sea: tuple[Colour, Colour]
    hills: tuple[Colour, ...]


MOODS = {
    "pale blue": Mood(
        "blue",
        ((122, 190, 242), (168, 214, 248), (214, 236, 250)),
        (240, 246, 252),
        ((92, 168, 204), (40, 112, 168)),
        ((150, 196, 140), (112, 172, 96), (78, 142, 70)),
    ),
    "deep blue": Mood(
        "blue",
        ((20, 70, 152), (38, 98, 182), (78, 136, 206)),
        (94, 142, 204),
        ((34, 96, 150), (14, 54, 108)),
        ((76, 134, 104), (56, 116, 72), (38, 92, 50)),
    ),
    "glowing sunset": Mood(
        "sunset",
        ((244, 168, 132), (252, 188, 112), (255, 218, 132)),
        (255, 230, 204),
        ((236, 164, 104), (178, 104, 92)),
        ((196, 128, 104), (150, 92, 88), (104, 64, 74)),
    ),
    "dusky sunset": Mood(
        "sunset",
        ((62, 42, 102), (138, 58, 108), (214, 92, 76), (232, 118, 60)),
        (180, 88, 108),
        ((160, 74, 86), (68, 42, 86)),
        ((110, 52, 84), (78, 40, 74), (50, 28, 58)),
    ),
    "light cloudy": Mood(
        "cloudy",
        ((188, 196, 206), (208, 214, 221), (226, 229, 232)),
        (238, 240, 242),
        ((142, 160, 170), (98, 120, 134)),
        ((158, 176, 158), (124, 150, 122), (92, 122, 92)),
    ),
    "dark cloudy": Mood(
        "cloudy",
        ((62, 70, 86), (86, 96, 112), (112, 122, 138)),
        (124, 132, 146),
        ((70, 90, 106), (40, 56, 72)),
        ((78, 98, 88), (60, 82, 68), (44, 62, 50)),
    ),
    "pink": Mood(
        "pink",
        ((222, 164, 200), (242, 186, 204), (255, 220, 210)),
        (255, 238, 236),
        ((206, 160, 190), (146, 116, 166)),
        ((184, 164, 170), (132, 154, 132), (96, 128, 102)),
    ),
    "night": Mood(
        "night",
        ((8, 14, 44), (18, 30, 76), (44, 62, 116)),
        (52, 66, 112),
        ((26, 40, 84), (10, 18, 50)),
        ((26, 40, 74), (18, 28, 56), (10, 18, 40)),
    ),
}


def luma(colour: Colour) -> float:
    """The brightness that Canny sees, 0 to 255, as cv2 weighs it."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


@dataclass(frozen=True)
class Disc:
    """A sun or moon; positions and radius as shares of the image's side."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Backdrop:
    """What stands behind the birds, in shares of the image's side, y down.

    ground: none, sea or hills; horizon: its top, 1 for none. puffs: (x, y, radius) of round pieces of cloud.
    ridges: for each range of hills, far to near, its height at equal steps of x.
    """

    mood: str
    ground: str
    horizon: float
    disc: Disc | None
    stars: tuple[tuple[float, float, float], ...]
    puffs: tuple[tuple[float, float, float], ...]
    ridges: tuple[tuple[float, ...], ...]
    waves: tuple[tuple[float, float, float], ...]

    def brightness(self, top: float, bottom: float) -> tuple[float, float]:
        """The darkest and lightest luma between two heights of the sky, clouds included."""
        stops = MOODS[self.mood].stops
        at = np.linspace(0, max(self.horizon, 0.5), len(stops))
        luma_stops = [luma(stop) for stop in stops]
        values = np.interp(np.linspace(top, bottom, 9), at, luma_stops)
        high = max(values.max(), luma(MOODS[self.mood].cloud)) if self.puffs else values.max()
        return float(values.min()), float(high)


def compose(rng: np.random.Generator, mood: str, ground: str, clouds: bool) -> Backdrop:
    """Draw the lots for one backdrop."""
    sky = MOODS[mood].sky
    horizon = {"none": 1.0, "sea": rng.uniform(0.72, 0.84), "hills": rng.uniform(0.70, 0.80)}[ground]
    disc = None
    if sky == "night" and rng.random() < 0.6:
        disc = Disc(
            rng.choice([rng.uniform(0.1, 0.2), rng.uniform(0.8, 0.9)]), rng.uniform(0.1, 0.18), rng.uniform(0.06, 0.085)
        )
    if mood == "glowing sunset" and ground != "none" and rng.random() < 0.7:
        disc = Disc(rng.uniform(0.15, 0.85), horizon - rng.uniform(-0.02, 0.05), rng.uniform(0.08, 0.12))
    stars = ()
    if sky == "night":
        number = rng.integers(10, 15)
        stars = tuple(
            zip(
                rng.uniform(0.03, 0.97, number),
                rng.uniform(0.03, 0.62, number),
                rng.uniform(0.010, 0.015, number),
                strict=True,
            )
        )
    puffs: list[tuple[float, float, float]] = []
    if clouds:
        for _ in range(rng.integers(2, 5)):
            x, y, big = rng.uniform(0, 1), rng.uniform(0.08, min(0.9, horizon - 0.08)), rng.uniform(0.05, 0.085)
            for k in np.linspace(-1, 1, 6):
                lump = big * (1.15 - 0.75 * k * k) * rng.uniform(0.8, 1.1)
                puffs.append(
                    (float(x + 2.4 * big * k), float(y - 0.55 * lump + rng.uniform(-0.1, 0.1) * big), float(lump))
                )
    ridges: list[tuple[float, ...]] = []
    if ground == "hills":
        x = np.linspace(0, 1, 33)
        for layer in range(3):
            base = horizon + (1 - horizon) * 0.36 * layer
            wave = np.sin(x * rng.uniform(4, 8) + rng.uniform(0, 6.3)) + 0.4 * np.sin(
                x * rng.uniform(9, 14) + rng.uniform(0, 6.3)
            )
            ridges.append(tuple((base + 0.028 * (wave + 1.0)).tolist()))
    waves = ()
    if ground == "sea":
        number = 7
        depth = (np.arange(number) + rng.uniform(0.2, 0.8, number)) / number
        waves = tuple(
            zip(rng.uniform(0, 1, number), horizon + 0.02 + (0.98 - horizon) * depth, 0.08 + 0.12 * depth, strict=True)
        )
    return Backdrop(mood, ground, float(horizon), disc, stars, tuple(puffs), tuple(ridges), waves)


def paint(backdrop: Backdrop, side: int) -> UInt8[np.ndarray, "h w 3"]:
    """The backdrop as an RGB image of `side` pixels."""
    mood = MOODS[backdrop.mood]
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = _fade(mood.stops, (np.arange(side) + 0.5) / side / max(backdrop.horizon, 0.5))[:, None]
    for x, y, radius in backdrop.stars:
        _disc(canvas, x, y, radius, (206, 212, 236))
    disc = backdrop.disc
    if disc:
        moon = mood.sky == "night"
        glow = _soft([(disc.x, disc.y, 1.5 * disc.radius)], 9.0)
        _blend(canvas, glow, (90, 104, 150) if moon else (255, 236, 170), 150)
        _disc(canvas, disc.x, disc.y, disc.radius, (240, 236, 210) if moon else (255, 244, 196))
    if backdrop.puffs:
        _blend(canvas, _soft(backdrop.puffs, 1.6), mood.cloud, 190)
    if backdrop.ground == "sea":
        top = round(backdrop.horizon * side)
        canvas[top:] = _fade(mood.sea, (np.arange(side - top) + 0.5) / (side - top))[:, None]
        red, green, blue = (int(c + 0.45 * (d - c)) for c, d in zip(mood.sea[0], mood.cloud, strict=True))
        swell = np.zeros((SOFT, SOFT), np.uint8)
        for x, y, half in backdrop.waves:
            centre, axes = (
                (round(x * SOFT * 16), round(y * SOFT * 16)),
                (round(half * SOFT * 16), round(0.09 * half * SOFT * 16)),
            )
            cv2.ellipse(swell, centre, axes, 0, 0, 360, 255, -1, cv2.LINE_AA, SHIFT)
        swell = cv2.GaussianBlur(swell, (0, 0), 0.8)
        swell[: round(backdrop.horizon * SOFT) + 1] = 0
        _blend(canvas, swell, (red, green, blue), 130)
    for ridge, colour in zip(backdrop.ridges, mood.hills, strict=False):
        fill(canvas, hill(ridge), colour)
    return canvas


def hill(ridge: tuple[float, ...]) -> np.ndarray:
    """The outline (n, 2) of a range of hills, down to below the image."""
    x = np.linspace(0, 1, len(ridge))
    return np.concatenate([[(-0.1, 1.1), (-0.1, ridge[0])], np.stack([x, ridge], 1), [(1.1, ridge[-1]), (1.1, 1.1)]])


def fill(canvas: np.ndarray, outline: np.ndarray, colour: Colour | int) -> None:
    """Fill an outline (n, 2) in shares of the side, smooth at its rim."""
    points = np.rint(outline * (canvas.shape[0] << SHIFT)).astype(np.int32) - (1 << SHIFT >> 1)
    cv2.fillPoly(canvas, [points], colour, cv2.LINE_AA, SHIFT)


def _fade(stops: tuple[Colour, ...], at: np.ndarray) -> np.ndarray:
    """Colours (n, 3) along a run of stops; `at` 0 to 1."""
    where = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(at, where, [stop[c] for stop in stops]) for c in range(3)], 1).round().astype(np.uint8)


def _disc(canvas: np.ndarray, x: float, y: float, radius: float, colour: Colour) -> None:
    unit = canvas.shape[0] << SHIFT
    cv2.circle(canvas, (round(x * unit) - 8, round(y * unit) - 8), round(radius * unit), colour, -1, cv2.LINE_AA, SHIFT)


def _soft(puffs: tuple | list, sigma: float) -> UInt8[np.ndarray, "h w"]:
    """Circles without edges, as a mask."""
    mask = np.zeros((SOFT, SOFT), np.uint8)
    for x, y, radius in puffs:
        centre = round(x * SOFT * 16), round(y * SOFT * 16)
        cv2.circle(mask, centre, round(radius * SOFT * 16), 255, -1, cv2.LINE_8, SHIFT)
    return cv2.GaussianBlur(mask, (0, 0), sigma)


def _blend(canvas: np.ndarray, mask: np.ndarray, colour: Colour, strength: int) -> None:
    """Lay `colour` over the canvas where the mask is; strength 0 to 255. In integers, so the same everywhere."""
    side = canvas.shape[0]
    if side != SOFT:
        mask = cv2.resize(mask, (side, side), interpolation=cv2.INTER_LINEAR)
    weight = (mask.astype(np.int32) * strength)[..., None]
    canvas[:] = (canvas * (65025 - weight) + np.array(colour, np.int32) * weight + 32512) // 65025
