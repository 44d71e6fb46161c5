"""Dogs, drawn: one or two on grass, a road, a beach or a floor, controlled by Canny edges, captioned as BLIP would.

They stand in for the 20,579 photos of CuteNet (Stanford Dogs, control = cv2.Canny(100, 200) of the grey photo, captions
by BLIP with the prefix "a photography of"), which are as many here.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from cnx.condition import Canny, Condition, Geometry
from cnx.condition.ade20k import number
from cnx.data.synthetic.backdrop import Colour, fill, luma
from cnx.data.synthetic.pair import Pair, control_map, unlike_own
from cnx.data.synthetic.surface import Spindle
from cnx.data.synthetic.truth import ANIMAL, NEAR, SEA, SKY, WALL, Canvas

SEED = 20_579
FINE = 2  # drawn at this multiple of the size, then averaged down
CLEAR = 22  # luma a coat must keep from all that is behind it for Canny(100, 200) to find most of its rim
GRASS, ROAD, SAND, FLOOR = (number(name) for name in ("grass", "road", "sand", "floor"))

COATS: dict[str, Colour] = {
    "white": (250, 248, 242),
    "black": (34, 32, 36),
    "brown": (116, 68, 38),
    "golden": (216, 164, 88),
    "grey": (132, 134, 142),
}


@dataclass(frozen=True)
class Breed:
    """The proportions of one kind of dog, in heights of its withers.

    girth: radius of the chest. leg: radius at the elbow. ear: 1 hangs, -1 stands up. tail: its length; lift: how high
    it is carried, in radians over level.
    """

    body: float
    girth: float
    leg: float
    neck: float
    head: float
    muzzle: float
    ear: int
    tail: float
    lift: float


BREEDS = {
    "retriever": Breed(0.98, 0.25, 0.085, 0.34, 0.175, 0.24, 1, 0.55, 0.2),
    "shepherd": Breed(1.05, 0.23, 0.08, 0.36, 0.16, 0.28, -1, 0.6, -0.5),
    "terrier": Breed(0.85, 0.24, 0.08, 0.30, 0.20, 0.22, -1, 0.3, 1.1),
    "hound": Breed(0.98, 0.21, 0.07, 0.40, 0.15, 0.28, 1, 0.6, 0.7),
    "dachshund": Breed(1.75, 0.32, 0.12, 0.40, 0.24, 0.36, 1, 0.7, 0.3),
    "spitz": Breed(0.86, 0.29, 0.09, 0.30, 0.19, 0.2, -1, 0.5, 1.5),
}


@dataclass(frozen=True)
class Place:
    """Where dogs are: bands from the top, each (class, colours at its top and end, share of the ground it begins at).

    The first band is what stands upright behind: a sky or a wall, which begins at the top of the picture.
    """

    words: tuple[str, ...]
    bands: tuple[tuple[int, Colour, Colour, float], ...]


PLACES = (
    Place(
        ("on the grass", "in a green field"),
        ((SKY, (122, 190, 242), (214, 236, 250), 0), (GRASS, (120, 168, 84), (84, 140, 58), 0)),
    ),
    Place(
        ("in a field under a cloudy sky", "on the grass on a cloudy day"),
        ((SKY, (188, 196, 206), (226, 229, 232), 0), (GRASS, (112, 148, 82), (78, 118, 56), 0)),
    ),
    Place(
        ("in a field in the evening", "on the grass in the evening"),
        ((SKY, (66, 74, 108), (122, 104, 128), 0), (GRASS, (64, 96, 56), (48, 76, 42), 0)),
    ),
    Place(
        ("on the road", "on the street"),
        (
            (SKY, (152, 204, 244), (222, 238, 248), 0),
            (GRASS, (116, 162, 86), (104, 152, 76), 0),
            (ROAD, (124, 124, 130), (104, 104, 110), 0.3),
        ),
    ),
    Place(
        ("on the beach", "on the sand by the sea"),
        (
            (SKY, (122, 190, 242), (214, 236, 250), 0),
            (SEA, (92, 168, 204), (70, 146, 190), 0),
            (SAND, (222, 196, 144), (206, 176, 122), 0.25),
        ),
    ),
    Place(
        ("on the floor", "on a wooden floor in a room"),
        ((WALL, (226, 216, 196), (214, 204, 184), 0), (FLOOR, (176, 122, 78), (148, 98, 60), 0.2)),
    ),
    Place(
        ("on the floor of a dark room", "on a grey floor"),
        ((WALL, (66, 74, 96), (80, 88, 110), 0), (FLOOR, (150, 150, 154), (168, 168, 172), 0.2)),
    ),
)
VERBS = ("standing", "sitting", "running")
COUNTS = {1: ("a", "one"), 2: ("two", "a pair of")}


@dataclass(frozen=True)
class Limb:
    """A round piece between two circles: (x, y, distance, radius) of each, the name of its tone; x right, y down."""

    tone: str
    start: tuple[float, float, float, float]
    end: tuple[float, float, float, float]

    @property
    def outline(self) -> Float[np.ndarray, "n 2"]:
        turn = np.linspace(0, 2 * np.pi, 25)[:-1]
        ring = np.stack([np.cos(turn), np.sin(turn)], 1)
        both = np.concatenate([ring * at[3] + at[:2] for at in (self.start, self.end)])
        return cv2.convexHull(both.astype(np.float32))[:, 0].astype(np.float64)

    @property
    def surface(self) -> Spindle:
        # A little beyond both ends, so that they are round too.
        a, b = np.array(self.start), np.array(self.end)
        ahead = (b - a)[:2] / max(float(np.hypot(*(b - a)[:2])), 1e-6)
        share = np.linspace(0, 1, 5)[:, None]
        line = a + share * (b - a)
        first, last = line[:1].copy(), line[-1:].copy()
        first[:, :2] -= 0.9 * a[3] * ahead
        last[:, :2] += 0.9 * b[3] * ahead
        first[:, 3], last[:, 3] = 0.4 * a[3], 0.4 * b[3]
        line = np.concatenate([first, line, last])
        return Spindle(line[:, :3], line[:, 3])


@dataclass(frozen=True)
class Dog:
    """One dog: its pieces, farthest first, and its joints, in heights of its withers, its middle above the ground at
    (0, 0); where it stands, in shares of the image's side, and how many of them its withers are high.
    """

    breed: str
    limbs: tuple[Limb, ...]
    joints: dict[str, tuple[float, float]]
    at: tuple[float, float]
    scale: float

    def placed(self, outline: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Positions of its own in shares of the image's side."""
        return outline * self.scale + self.at


@dataclass(frozen=True)
class Walk:
    """One item before any pixel. eye: how high the viewer's eyes are in the picture, in shares of its side, y down."""

    place: Place
    eye: float
    coat: str
    dogs: tuple[Dog, ...]
    prompt: str

    def bands(self) -> list[tuple[int, Colour, Colour, float, float]]:
        """Class, colours, top and bottom of each band, in shares of the side."""
        tops = [0.0, *(self.eye + (1 - self.eye) * share for _, _, _, share in self.place.bands[1:]), 1.0]
        return [(*band[:3], top, end) for band, top, end in zip(self.place.bands, tops[:-1], tops[1:], strict=True)]


@dataclass(frozen=True)
class Dogs:
    """20,579 pictures of dogs; control: Canny edges at the picture's own size, or what `condition` says."""

    name: str = "dogs"
    count: int = 20_579
    version: int = 1
    condition: Condition | None = None

    def scene(self, index: int) -> Walk:
        """What item `index` shows, before any pixel."""
        rng = np.random.default_rng([SEED, index])
        place = PLACES[rng.integers(len(PLACES))]
        coats = [name for name, coat in COATS.items() if _stands_out(coat, place)]
        coat = coats[rng.integers(len(coats))]
        verb = VERBS[rng.integers(len(VERBS))]
        breed = list(BREEDS)[rng.integers(len(BREEDS))]
        pair = bool(rng.random() < 0.25) and BREEDS[breed].body < 1.2
        eye = float(rng.uniform(0.34, 0.5))
        floor = eye + (1 - eye) * place.bands[-1][3]  # where what they stand on begins
        dogs = _pack(rng, breed, verb, 2 if pair else 1, eye, floor)
        count = COUNTS[len(dogs)][0 if rng.random() < 0.75 else 1]
        where = place.words[rng.integers(len(place.words))]
        prompt = f"a photography of {count} {coat} {'dogs' if pair else 'dog'} {verb} {where}"
        # The farther one is drawn first.
        return Walk(place, eye, coat, tuple(sorted(dogs, key=lambda dog: dog.scale)), prompt)

    def draw(self, index: int, size: int) -> Pair:
        """Draw item `index`, 0 or more, as a square of `size` pixels."""
        scene = self.scene(index)
        side = size * FINE
        canvas = np.empty((side, side, 3), np.uint8)
        for _, first, last, top, end in scene.bands():
            rows = (np.arange(side) + 0.5) / side
            inside = (rows >= top) & (rows < end)
            share = ((rows[inside] - top) / (end - top))[:, None]
            canvas[inside] = (np.array(first) + share * (np.array(last) - first)).round()[:, None].astype(np.uint8)
        tones = _tones(COATS[scene.coat])
        for dog in scene.dogs:
            for limb in dog.limbs:
                fill(canvas, dog.placed(limb.outline), tones[limb.tone])
        target = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
        condition = unlike_own(self.condition) or Canny()
        return Pair(control_map(condition, target, lambda: self.geometry(index, size)), target, scene.prompt)

    def geometry(self, index: int, size: int) -> Geometry:
        """The space that item `index` shows: dogs on a level ground, before a sky or a wall."""
        scene = self.scene(index)
        upright, *ground = scene.bands()
        canvas = Canvas(size, upright[0])
        rows = (np.arange(size) + 0.5) / size
        nearest = scene.dogs[-1]
        steep = NEAR * nearest.scale / (nearest.at[1] - scene.eye)  # nearness for each share of the side below the eyes
        if upright[0] == WALL:  # it stands where the floor begins
            canvas.lay(np.ones((size, size), bool), WALL, steep * (ground[0][3] - scene.eye), (0, 0, 1))
        for kind, _, _, top, end in ground:
            where = np.repeat(((rows >= top) & (rows < end))[:, None], size, 1)
            near = np.repeat(np.clip(steep * (rows - scene.eye), 0, 1)[:, None], size, 1)
            canvas.lay(where, kind, near[where], (0, 1, 0))
            canvas.note_edge(np.array([[0.0, top], [1.0, top]]))
        for dog in scene.dogs:
            whole = canvas.inside(*(dog.placed(limb.outline) for limb in dog.limbs))
            for limb in dog.limbs:
                where = whole & canvas.inside(dog.placed(limb.outline), share=0.08)
                canvas.lay_surface(where, ANIMAL, limb.surface, (0, 0), dog.at, dog.scale)
            canvas.note_outline(whole, surfaces=len(dog.limbs))
        joints = ({name: dog.placed(np.array([at]))[0] for name, at in dog.joints.items()} for dog in scene.dogs)
        return canvas.geometry(tuple({n: (float(x), float(y)) for n, (x, y) in body.items()} for body in joints))

    def prompt(self, index: int) -> str:
        """The caption of item `index`, without drawing it."""
        return self.scene(index).prompt

    def vocabulary(self) -> list[str]:
        """Every word that a caption can hold, sorted."""
        texts = ["photography of dog dogs", *COATS, *VERBS, *COUNTS[1], *COUNTS[2]]
        texts += [words for place in PLACES for words in place.words]
        return sorted({word for text in texts for word in text.split()})


def _stands_out(coat: Colour, place: Place) -> bool:
    """Whether a coat can be seen before all that may be behind it."""
    behind = [luma(colour) for _, *colours, _ in place.bands for colour in colours]
    return min(abs(luma(coat) - other) for other in behind) >= CLEAR


def _tones(coat: Colour) -> dict[str, Colour]:
    """The colour of each piece; steps between them are below what Canny takes for an edge, eyes and nose apart."""
    dark = luma(coat) < 60

    def scaled(by: float) -> Colour:
        red, green, blue = (min(255, round(c * by)) for c in coat)
        return red, green, blue

    return {
        "near": coat,
        "far": scaled(0.7 if dark else 0.84),
        "ear": scaled(1.5 if dark else 0.86),
        "muzzle": scaled(1.3 if dark else 0.94),
        "eye": (240, 236, 220) if dark else (26, 22, 24),
        "nose": (110, 100, 100) if dark else (34, 28, 30),
    }


def _pack(rng: np.random.Generator, breed: str, verb: str, number: int, eye: float, floor: float) -> tuple[Dog, ...]:
    """Dogs beside each other that look the same way, with their feet below `floor`, in shares of the image's side."""
    mirror = bool(rng.random() < 0.5)
    figures = [_figure(rng, BREEDS[breed], verb) for _ in range(number)]
    corners = [np.concatenate([limb.outline for limb in limbs]) for limbs, _ in figures]
    boxes = [(points.min(0), points.max(0)) for points in corners]
    room = 0.92 / number - 0.02
    top = min(float(least[1]) for least, _ in boxes)
    scale = min([room / float(most[0] - least[0]) for least, most in boxes] + [0.9 / -top]) * rng.uniform(0.84, 1.0)
    feet = rng.uniform(max(floor + 0.1, 0.04 - top * scale), 0.95)
    dogs = []
    for place, ((limbs, joints), (least, most)) in enumerate(zip(figures, boxes, strict=True)):
        # On one ground, what is smaller stands nearer to the height of the viewer's eyes.
        far = 1.0 if place == 0 else float(rng.uniform(0.88, 1.0))
        size = scale * far
        wide = size * float(most[0] - least[0])
        left = 0.04 + place * (room + 0.02) + rng.uniform(0, 1) * (room - wide)
        start = float(most[0] if mirror else -least[0]) * size
        at = float(left + start), float(eye + (feet - eye) * far)
        if mirror:
            limbs = [Limb(piece.tone, _flipped(piece.start), _flipped(piece.end)) for piece in limbs]
            joints = {_other_side(name): (-x, y) for name, (x, y) in joints.items()}
        dogs.append(Dog(breed, tuple(limbs), joints, at, float(size)))
    return tuple(dogs)


def _other_side(name: str) -> str:
    """A mirrored left leg is a right one."""
    return name.replace("left", "right") if "left" in name else name.replace("right", "left")


def _flipped(at: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x, y, away, radius = at
    return -x, y, away, radius


def _figure(rng: np.random.Generator, kind: Breed, verb: str) -> tuple[list[Limb], dict[str, tuple[float, float]]]:
    """A dog that looks to the right and shows its right side: its pieces, farthest first, and its joints."""
    half, leg = kind.body / 2, kind.leg
    jitter = rng.uniform(-1, 1, 12)
    chest = -1 + 0.8 * kind.girth  # the axis of the trunk at the withers
    if verb == "sitting":
        withers, rump = np.array([0.32 * half, chest]), np.array([-0.55 * half, -0.34])
        paws = {"fore": withers[0] + 0.02 + 0.05 * jitter[:2], "hind": rump[0] + 0.36 + 0.05 * jitter[2:4]}
        lift = -0.15
    else:
        withers, rump = np.array([half, chest]), np.array([-half, chest + 0.03 * jitter[0]])
        paws = {"fore": half + 0.10 * jitter[:2], "hind": -half - 0.06 + 0.10 * jitter[2:4]}
        lift = kind.lift
    feet = {"fore": np.zeros(2), "hind": np.zeros(2)}
    if verb == "running":  # stretched or gathered, a little off the ground
        stretch = float(rng.choice([-1, 1])) * rng.uniform(0.55, 1.0)
        paws = {"fore": half + 0.42 * stretch + 0.12 * jitter[:2], "hind": -half - 0.42 * stretch + 0.12 * jitter[2:4]}
        feet = {"fore": -0.12 - 0.10 * np.abs(jitter[4:6]), "hind": -0.06 - 0.12 * np.abs(jitter[6:8])}
    tilt = 0.75 + 0.15 * jitter[8] - (0.35 if verb == "running" else 0)
    poll = withers + kind.neck * np.array([np.cos(tilt), -np.sin(tilt)]) + [0.06, -0.3 * kind.girth]
    nod = 0.22 + 0.15 * jitter[9]
    nose = poll + (kind.head + kind.muzzle) * np.array([np.cos(nod), np.sin(nod)])
    tail = rump + kind.tail * np.array([-np.cos(lift), -np.sin(lift)]) + [-0.4 * kind.girth, -0.3 * kind.girth]

    legs: dict[int, list[Limb]] = {0: [], 1: []}
    joints = {"nose": nose, "head": poll, "withers": withers, "rump": rump, "tail end": tail}
    for near, side in ((1, "right"), (0, "left")):
        tone, away = ("near", -0.6 * kind.girth) if near else ("far", 0.6 * kind.girth)
        for end, root in (("hind", rump), ("fore", withers)):
            paw = np.array([paws[end][near], min(feet[end][near], 0.0) - 0.6 * leg])
            bend = 0.12 if end == "fore" else -0.16
            knee = (root + paw) / 2 + np.array([-bend if verb != "sitting" or end == "fore" else 0.2, 0.0])
            thick = 1.5 * leg if end == "fore" else 1.9 * leg
            legs[near] += [
                Limb(tone, (*root, away, thick), (*knee, away, leg)),
                Limb(tone, (*knee, away, leg), (*paw, away, 0.75 * leg)),
                Limb(tone, (*paw, away, 0.75 * leg), (paw[0] + 0.09, paw[1] + 0.1 * leg, away, 0.62 * leg)),
            ]
            joints |= {f"{side} {end} knee": knee, f"{side} {end} paw": paw}
    waist = (withers + rump) / 2 + [0, -0.02]
    along = nose - poll
    ear = poll + 0.35 * kind.head * np.array([-0.9, -0.6])
    ear_end = ear + kind.head * np.array([-0.35, 1.05 if kind.ear > 0 else -1.15])
    front = -0.3 * kind.girth
    limbs = [
        *legs[0],
        Limb("near", (*rump, 0, 0.4 * kind.girth), (*tail, 0, 0.05 + 0.15 * kind.girth)),
        Limb("near", (*rump, 0, 0.88 * kind.girth), (*waist, 0, 0.84 * kind.girth)),
        Limb("near", (*waist, 0, 0.84 * kind.girth), (*withers, 0, kind.girth)),
        *legs[1],
        Limb("near", (*withers, 0, 0.75 * kind.girth), (*poll, 0, 0.8 * kind.head)),
        Limb("muzzle", (*poll, 0, 0.62 * kind.head), (*(nose - 0.05 * along), 0, 0.42 * kind.head)),
        Limb("near", (*poll, 0, kind.head), (*(poll + 0.2 * along), 0, 0.85 * kind.head)),
        Limb("ear", (*ear, front, 0.34 * kind.head), (*ear_end, front, 0.2 * kind.head)),
        Limb("nose", (*nose, 0, 0.16 * kind.head), (*(nose + 0.03 * along), 0, 0.14 * kind.head)),
    ]
    look = poll + 0.36 * along + np.array([0.35 * along[1], -0.42 * kind.head])
    limbs.append(Limb("eye", (*look, front, 0.11 * kind.head), (*(look + 0.01), front, 0.11 * kind.head)))
    limbs = [Limb(piece.tone, _floats(piece.start), _floats(piece.end)) for piece in limbs]
    return limbs, {name: (float(at[0]), float(at[1])) for name, at in joints.items()}


def _floats(at: tuple) -> tuple[float, float, float, float]:
    x, y, away, radius = (float(value) for value in at)
    return x, y, away, radius
