"""Birds in flight, drawn: one to three birds before a sky, controlled by Canny edges, captioned as BLIP would.

They stand in for the 7,574 photos of the seven attempts (control = cv2.Canny(100, 200) of the photo at its own size).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import UInt8

from cnx.condition import Canny, Condition, Geometry
from cnx.data.synthetic.anatomy import SPECIES, Figure, Part, Pose, figure
from cnx.data.synthetic.backdrop import MOODS, Backdrop, Colour, compose, fill, luma, paint
from cnx.data.synthetic.pair import Pair, control_map, unlike_own
from cnx.data.synthetic.truth import ANIMAL, SKY, Canvas, lay_backdrop

SEED = 7_574
FINE = 2  # drawn at this multiple of the size, then averaged down
SLENDER = 0.2  # the least share of its box that a bird should fill
CROWDED = 0.004  # the area that boxes may share, of the image's
CLEAR = 40  # luma a bird must keep from its sky for Canny(100, 200) to find the rim

Box = tuple[float, float, float, float]  # left, top, right, bottom
PLUMAGE: dict[str, Colour] = {
    "white": (250, 250, 247),
    "black": (34, 34, 40),
    "brown": (124, 74, 40),
    "grey": (126, 130, 138),
    "red": (206, 38, 42),
    "blue": (34, 74, 196),
    "yellow": (252, 212, 40),
    "orange": (246, 132, 26),
}


@dataclass(frozen=True)
class Bird:
    """One bird: how it is posed, and its outlines in shares of the image's side, farthest first.

    joints: positions in the same shares by name. Half its wingspan is `scale` of the side, and what is at `middle` in
    its own units is in the middle of `box`.
    """

    pose: Pose
    outlines: tuple[Part, ...]
    box: Box
    joints: dict[str, tuple[float, float]]
    middle: tuple[float, float]
    scale: float


@dataclass(frozen=True)
class Flight:
    """One item before any pixel."""

    backdrop: Backdrop
    colour: str
    birds: tuple[Bird, ...]
    prompt: str


def tones(colour: str, sky: tuple[float, float]) -> dict[str, Colour]:
    """The colour of each part of a bird of plumage `colour` before a sky of the given darkest and lightest luma."""
    base = PLUMAGE[colour]
    wing, flight, belly, far = shades(base)
    dark, mild = _scale(base, 0.45), far
    tip = next((c for c in (dark, mild) if gap(c, sky) >= CLEAR), base)
    bright, deep = (255, 178, 40), (186, 84, 16)
    beak = max((bright, deep), key=lambda c: gap(c, sky))
    out = {"body": base, "belly": belly, "tail": flight, "beak": beak}
    out |= {"near_wing": wing, "near_flight": flight, "near_tip": tip}
    out |= {"far_wing": far, "far_flight": _scale(far, 0.95), "far_tip": far if tip == base else tip}
    out["eye"] = (250, 250, 250) if luma(base) < 60 else (24, 22, 26)
    return out


def shades(base: Colour) -> tuple[Colour, Colour, Colour, Colour]:
    """Near wing, flight feathers, belly and far wing: below the step in luma that Canny would take for an edge."""
    if luma(base) < 60:  # nothing is darker than black, so it is shaded upwards
        return _scale(base, 1.35), base, _scale(base, 1.5), _scale(base, 0.7)
    if luma(base) > 190:  # a light bird must not sink into its sky
        return base, _scale(base, 0.94), _scale(base, 0.93), _scale(base, 0.88)
    return base, _scale(base, 0.92), _scale(base, 0.9), _scale(base, 0.84)


def gap(colour: Colour, sky: tuple[float, float]) -> float:
    """How far a colour's luma is from every luma of the sky; negative within its range."""
    return max(luma(colour) - sky[1], sky[0] - luma(colour))


def _scale(colour: Colour, by: float) -> Colour:
    red, green, blue = (min(255, round(c * by)) for c in colour)
    return red, green, blue


@lru_cache
def plumages(mood: str) -> tuple[str, ...]:
    """The colours that stand out before a sky, shaded parts too."""
    stops = [luma(stop) for stop in MOODS[mood].stops] + [luma(MOODS[mood].cloud)]
    sky = min(stops), max(stops)
    return tuple(c for c, base in PLUMAGE.items() if min(gap(shade, sky) for shade in (base, *shades(base))) >= CLEAR)


@dataclass(frozen=True)
class Birds:
    """7,574 pictures of flying birds; control: Canny edges at the picture's own size, or what `condition` says."""

    name: str = "birds"
    count: int = 7_574
    version: int = 1
    condition: Condition | None = None

    def scene(self, index: int) -> Flight:
        """What item `index` shows, before any pixel."""
        rng = np.random.default_rng([SEED, index])
        mood = list(MOODS)[rng.integers(len(MOODS))]
        colour = plumages(mood)[rng.integers(len(plumages(mood)))]
        ground = ("none", "none", "sea", "hills")[rng.integers(4)]
        sky = MOODS[mood].sky
        clouds = sky == "cloudy" or (sky != "night" and ground == "none" and rng.random() < 0.5)
        backdrop = compose(rng, mood, ground, clouds)
        birds = _flock(rng, backdrop)
        stars = tuple(star for star in backdrop.stars if not any(_near(star, bird.box) for bird in birds))
        backdrop = replace(backdrop, stars=stars)
        return Flight(backdrop, colour, birds, _caption(rng, len(birds), colour, sky, ground, clouds, backdrop))

    def draw(self, index: int, size: int) -> Pair:
        """Draw item `index`, 0 or more, as a square of `size` pixels."""
        scene = self.scene(index)
        canvas = paint(scene.backdrop, size * FINE)
        for bird in scene.birds:
            colours = tones(scene.colour, scene.backdrop.brightness(bird.box[1], bird.box[3]))
            for part in bird.outlines:
                fill(canvas, part.outline, colours[part.tone])
        target = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
        condition = unlike_own(self.condition) or Canny()
        source = control_map(condition, target, lambda: self.geometry(index, size))
        return Pair(source, target, scene.prompt)

    def geometry(self, index: int, size: int) -> Geometry:
        """The space that item `index` shows: birds as far away as they are small, before sky, sea or hills."""
        scene = self.scene(index)
        canvas = Canvas(size, SKY)
        lay_backdrop(canvas, scene.backdrop)
        for bird in scene.birds:
            left, top, right, bottom = bird.box
            centre = (left + right) / 2, (top + bottom) / 2
            whole = canvas.inside(*(part.outline for part in bird.outlines))
            for part in bird.outlines:
                # The least share, so that no pixel between two parts is left to the sky.
                where = whole & canvas.inside(part.outline, share=0.08)
                canvas.lay_surface(where, ANIMAL, part.surface, bird.middle, centre, bird.scale)
            canvas.note_outline(whole, surfaces=len(bird.outlines))
        return canvas.geometry(tuple(bird.joints for bird in scene.birds))

    def prompt(self, index: int) -> str:
        """The caption of item `index`, without drawing it."""
        return self.scene(index).prompt

    def vocabulary(self) -> list[str]:
        """Every word that a caption can hold, sorted."""
        texts = [*PLUMAGE, *COUNTS[1], *COUNTS[2], *COUNTS[3], *VERBS, "an bird birds"]
        texts += [place for options in (*PLACES.values(), MOONLIT) for place in options]
        return sorted({word for text in texts for word in text.split()})


def mask(bird: Bird, size: int) -> UInt8[np.ndarray, "h w"]:
    """255 where the bird is."""
    out = np.zeros((size, size), np.uint8)
    for part in bird.outlines:
        fill(out, part.outline, 255)
    return out


COUNTS = {1: ("a", "one"), 2: ("two", "a pair of"), 3: ("three", "a flock of three")}
VERBS = ("flying", "soaring")

# (sky, ground, clouds) -> what may be said of it. Clouds are named only before a bare sky.
PLACES: dict[tuple[str, str, bool], tuple[str, ...]] = {
    ("blue", "none", False): ("in the blue sky", "in a clear blue sky", "across the blue sky"),
    ("blue", "none", True): ("in a blue sky with clouds", "in the blue sky among white clouds"),
    ("sunset", "none", False): ("in the sunset sky", "in the sky at sunset"),
    ("sunset", "none", True): ("in the sunset sky with clouds", "in a sunset sky among clouds"),
    ("cloudy", "none", True): ("in the cloudy sky", "in a grey cloudy sky", "across the cloudy sky"),
    ("pink", "none", False): ("in the pink sky", "in a clear pink sky", "across the pink sky"),
    ("pink", "none", True): ("in a pink sky with clouds", "in the pink sky among clouds"),
    ("night", "none", False): ("in the night sky", "in the sky at night", "among the stars"),
    ("blue", "sea", False): ("over the sea", "over the blue sea", "over the sea under a blue sky"),
    ("sunset", "sea", False): ("over the sea at sunset", "over the ocean at sunset"),
    ("cloudy", "sea", True): ("over the sea under a cloudy sky", "over the ocean on a cloudy day"),
    ("pink", "sea", False): ("over the sea under a pink sky", "over the ocean under a pink sky"),
    ("night", "sea", False): ("over the sea at night", "over the ocean under the stars"),
    ("blue", "hills", False): ("over green hills", "over green hills under a blue sky"),
    ("sunset", "hills", False): ("over the hills at sunset", "over dark hills at sunset"),
    ("cloudy", "hills", True): ("over green hills under a cloudy sky", "over the hills on a cloudy day"),
    ("pink", "hills", False): ("over the hills under a pink sky", "over green hills under a pink sky"),
    ("night", "hills", False): ("over the hills at night", "over dark hills under the stars"),
}
MOONLIT = ("in the night sky by the moon", "under the moon")


def _caption(
    rng: np.random.Generator, number: int, colour: str, sky: str, ground: str, clouds: bool, backdrop: Backdrop
) -> str:
    """Words that are true of the scene."""
    options = PLACES[sky, ground, clouds]
    if sky == "night" and ground == "none" and backdrop.disc:
        options = options + MOONLIT
    if len(backdrop.stars) < 4:  # a large bird hides most
        options = tuple(option for option in options if "stars" not in option)
    count = COUNTS[number][0 if rng.random() < 0.75 else 1]
    verb = VERBS[0 if rng.random() < 0.8 else 1]
    if count == "a" and colour == "orange":
        count = "an"
    return f"{count} {colour} {'bird' if number == 1 else 'birds'} {verb} {options[rng.integers(len(options))]}"


def _flock(rng: np.random.Generator, backdrop: Backdrop) -> tuple[Bird, ...]:
    """One to three birds of one kind that fly about the same way and hardly overlap."""
    number = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
    species = list(SPECIES)[rng.integers(len(SPECIES))]
    mirror = bool(rng.random() < 0.5)
    soaring = rng.random() < 0.3
    if soaring:
        yaw, elevation, roll = rng.uniform(-0.7, 0.7), rng.uniform(0.8, 1.3), rng.uniform(-0.3, 0.6)
    else:
        yaw, elevation = rng.choice([-1, 1]) * rng.uniform(0.15, 0.85), rng.choice([-1, 1, 1]) * rng.uniform(0.15, 0.5)
        roll = rng.uniform(-0.2, 0.45)
    mean = np.array([yaw, elevation, roll])
    low, high = {1: (0.52, 0.75), 2: (0.38, 0.5), 3: (0.32, 0.4)}[number]
    shapes = []
    for _ in range(number):
        for attempt in range(4):
            beat = _beat(rng, soaring)
            yaw, elevation, roll = (mean + rng.uniform(-1, 1, 3) * np.array((0.12, 0.08, 0.12))).tolist()
            pose = Pose(species, beat, yaw, elevation, roll, mirror)
            shape = figure(pose)
            points = np.concatenate([part.outline for part in shape.parts])
            least, most = points.min(0), points.max(0)
            # Seen edge-on, it is drawn again.
            if attempt == 3 or _area(shape.parts) > SLENDER * (most - least).max() ** 2:
                shapes.append((pose, shape, (least + most) / 2, (most - least) / 2, rng.uniform(low, high)))
                break
    return _place(rng, backdrop, shapes)


def _place(rng: np.random.Generator, backdrop: Backdrop, shapes: list[tuple]) -> tuple[Bird, ...]:
    """Find room in the sky for every bird; where there is none, the birds are made smaller."""
    floor = min(0.97, backdrop.horizon + 0.03)
    moon = backdrop.disc if MOODS[backdrop.mood].sky == "night" else None
    taken = [(moon.x - 0.1, moon.y - 0.1, moon.x + 0.1, moon.y + 0.1)] if moon else []
    best: tuple[float, list] = (np.inf, [])
    for shrink in (1.0, 0.92, 0.84, 0.76):
        for lots in rng.random((24, len(shapes), 2)):
            boxes, cover = list(taken), 0.0
            for (_, _, _, half, extent), (x, y) in zip(shapes, lots, strict=True):
                scale = shrink * min(extent / (2 * half.max()), (floor - 0.04) / (2 * half[1]))
                w, h = (half * scale).tolist()
                x, y = 0.04 + w + x * max(0.92 - 2 * w, 0), 0.04 + h + y * max(floor - 0.04 - 2 * h, 0)
                box = (x - w, y - h, x + w, y + h)
                cover += sum(_overlap(box, other) for other in boxes)
                boxes.append(box)
            if cover < best[0] - 1e-9:  # not by a rounding error, which may differ between machines
                best = cover, boxes[len(taken) :]
            if cover == 0:
                break
        if best[0] < CROWDED:
            break
    birds = []
    for (pose, shape, middle, half, _), box in zip(shapes, best[1], strict=True):
        centre, scale = np.array([box[0] + box[2], box[1] + box[3]]) / 2, (box[2] - box[0]) / (2 * half[0])
        birds.append(_placed(pose, shape, middle, centre, float(scale), box))
    return tuple(birds)


def _placed(
    pose: Pose,
    shape: Figure,
    middle: np.ndarray,
    centre: np.ndarray,
    scale: float,
    box: tuple[float, float, float, float],
) -> Bird:
    """A bird moved so that its `middle` is at `centre`."""
    outlines = tuple(replace(part, outline=(part.outline - middle) * scale + centre) for part in shape.parts)
    joints = {name: tuple(((at - middle) * scale + centre).tolist()) for name, at in shape.joints.items()}
    return Bird(pose, outlines, box, joints, tuple(middle.tolist()), scale)


def _beat(rng: np.random.Generator, soaring: bool) -> float:
    """A phase of the wing beat, most often one that shows the wings."""
    span = ((-0.5, 0.5),) if soaring else ((0.35, 1.9), (0.35, 1.9), (-0.3, 0.3), (-1.5, -0.6))
    return float(rng.uniform(*span[rng.integers(len(span))]))


def _area(shape: list[Part]) -> float:
    """About the area of a bird, overlaps counted twice."""
    total = 0.0
    for part in shape:
        if part.tone in ("body", "near_flight", "far_flight"):
            x, y = part.outline[:, 0], part.outline[:, 1]
            total += abs(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() + x[-1] * y[0] - x[0] * y[-1])) / 2
    return total


def _near(star: tuple[float, float, float], box: tuple[float, float, float, float]) -> bool:
    """Whether a star would touch a bird's rim, and so break its outline in the control map."""
    x, y, radius = star
    return box[0] - radius < x < box[2] + radius and box[1] - radius < y < box[3] + radius


def _overlap(a: tuple, b: tuple) -> float:
    """The area that two boxes (left, top, right, bottom) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
