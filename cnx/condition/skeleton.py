"""Skeletons as OpenPose style maps draw them: a colour for each joint, darker limbs between them."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from cnx.condition.condition import Pixels
from cnx.condition.geometry import Joints
from cnx.metric import Point

LIMB = 0.6  # of a joint's brightness, so that joints stand out where they lie on limbs
HUES = 36  # steps of 10 degrees: OpenPose's joints lie two apart
REACH = 0.1  # how far off a joint may be, of the longer side of its body's box


@dataclass(frozen=True)
class Anatomy:
    """The joints of a kind of body, in the order of their hues, and the limbs between them."""

    joints: tuple[str, ...]
    limbs: tuple[tuple[str, str], ...]

    def colour(self, joint: int) -> tuple[int, int, int]:
        """Red for the first joint, then around the circle of hues in equal steps, rounded to tens of degrees."""
        return _hue(round(joint * HUES / len(self.joints)))


def _hue(step: int) -> tuple[int, int, int]:
    """The full colour at a hue of `step` * 10 degrees."""
    wheel = (0, 120, 240)
    apart = [abs((step * 10 - at + 180) % 360 - 180) for at in wheel]
    red, green, blue = (round(255 * min(1.0, max(0.0, (120 - a) / 60))) for a in apart)
    return red, green, blue


def _sides(*limbs: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((a.replace("*", side), b.replace("*", side)) for side in ("right", "left") for a, b in limbs)


# OpenPose's 18 points of COCO, in its order: nose, neck, arms, legs, eyes, ears (Cao et al., CVPR 2017).
PERSON = Anatomy(
    joints=(
        "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
        "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
        "right eye", "left eye", "right ear", "left ear",
    ),
    limbs=(
        ("neck", "right shoulder"), ("neck", "left shoulder"), ("right shoulder", "right elbow"),
        ("right elbow", "right wrist"), ("left shoulder", "left elbow"), ("left elbow", "left wrist"),
        ("neck", "right hip"), ("right hip", "right knee"), ("right knee", "right ankle"),
        ("neck", "left hip"), ("left hip", "left knee"), ("left knee", "left ankle"),
        ("neck", "nose"), ("nose", "right eye"), ("right eye", "right ear"), ("nose", "left eye"),
        ("left eye", "left ear"),
    ),
)  # fmt: skip
BIRD = Anatomy(
    joints=(
        "beak", "head", "body", "tail", "right wing bend", "right wing tip", "left wing bend", "left wing tip",
    ),
    limbs=(
        ("beak", "head"), ("head", "body"), ("body", "tail"),
        *_sides(("body", "* wing bend"), ("* wing bend", "* wing tip")),
    ),
)  # fmt: skip
DOG = Anatomy(
    joints=(
        "nose", "head", "withers", "rump", "tail end",
        "right fore knee", "right fore paw", "right hind knee", "right hind paw",
        "left fore knee", "left fore paw", "left hind knee", "left hind paw",
    ),
    limbs=(
        ("nose", "head"), ("head", "withers"), ("withers", "rump"), ("rump", "tail end"),
        *_sides(
            ("withers", "* fore knee"), ("* fore knee", "* fore paw"), ("rump", "* hind knee"),
            ("* hind knee", "* hind paw"),
        ),
    ),
)  # fmt: skip
FINGERS = ("thumb", "forefinger", "middle finger", "ring finger", "little finger")
# COCO-WholeBody's 21 points of a hand: its root, then four of each finger from root to tip (Jin et al., ECCV 2020).
HANDS = {
    side: (f"{side} hand", *(f"{side} {finger} {part}" for finger in FINGERS for part in range(1, 5)))
    for side in ("left", "right")
}
FACE = tuple(f"face {point}" for point in range(68))
ANATOMIES = (PERSON, BIRD, DOG)


def draw_skeletons(skeletons: Iterable[Joints], height: int, width: int) -> Pixels:
    """The map of bodies on black: limbs, hands, then joints; faces as white dots.

    Sizes are the released annotator's, 4 px wide limbs at 512 px, but at least so wide that they can be seen.
    """
    skeletons = tuple(skeletons)
    canvas = np.zeros((height, width, 3), np.uint8)
    side = min(height, width)
    for body in skeletons:
        anatomy = _anatomy(body)
        for number, (a, b) in enumerate(anatomy.limbs):
            if a in body and b in body:
                colour = [round(LIMB * c) for c in anatomy.colour(number)]
                cv2.line(canvas, _pixel(body[a]), _pixel(body[b]), colour, max(1, round(side / 64)))
    for body in skeletons:
        for hand in HANDS.values():
            _draw_hand(canvas, body, hand, side)
        for name in FACE:
            if name in body:
                cv2.circle(canvas, _pixel(body[name]), max(0, round(3 * side / 512) - 1), (255, 255, 255), -1)
    for body in skeletons:
        anatomy = _anatomy(body)
        for number, name in enumerate(anatomy.joints):
            if name in body:
                cv2.circle(canvas, _pixel(body[name]), max(2, round(side / 128)), anatomy.colour(number), -1)
    return canvas


def read_points(control_map: Pixels) -> list[Point]:
    """The joints in a map: dots of full colour; each is of the kind that its hue says, so no anatomy is needed.

    Its reach is a tenth of the longer side of its body, at least 2 px. Bodies whose drawings touch count as one.
    """
    hsv = cv2.cvtColor(control_map, cv2.COLOR_RGB2HSV_FULL).astype(int)
    hue, full = hsv[..., 0], (hsv[..., 1] > 215) & (hsv[..., 2] > 215)
    step = np.round(hue * HUES / 256).astype(int) % HUES
    drawn = (control_map.max(axis=2) > 32).astype(np.uint8)
    _, bodies, boxes, _ = cv2.connectedComponentsWithStats(drawn, connectivity=8)
    points = []
    for kind in np.unique(step[full]).tolist():
        count, _, stats, centres = cv2.connectedComponentsWithStats(
            (full & (step == kind)).astype(np.uint8), connectivity=8
        )
        for dot in range(1, count):
            if stats[dot, cv2.CC_STAT_AREA] < 2:  # what a resize has blended
                continue
            x, y = centres[dot].tolist()
            left, top, wide, tall, _ = boxes[bodies[_inside(y, bodies.shape[0]), _inside(x, bodies.shape[1])]].tolist()
            points.append(Point(kind, x + 0.5, y + 0.5, max(2.0, REACH * max(wide, tall))))
    return points


def _anatomy(body: Joints) -> Anatomy:
    return max(ANATOMIES, key=lambda anatomy: len(set(anatomy.joints) & set(body)))


def _draw_hand(canvas: Pixels, body: Joints, hand: tuple[str, ...], side: int) -> None:
    """Bones from the root to each finger's tip, in hues of their own, with a blue dot at each point."""
    root, *points = hand
    fingers = [(root, *points[first : first + 4]) for first in range(0, 20, 4)]
    bones = [bone for finger in fingers for bone in zip(finger, finger[1:], strict=False)]
    for number, (a, b) in enumerate(bones):
        if a in body and b in body:
            colour = _hue(round(number * HUES / len(bones)))
            cv2.line(canvas, _pixel(body[a]), _pixel(body[b]), colour, max(1, round(side / 256)))
    for name in hand:
        if name in body:
            cv2.circle(canvas, _pixel(body[name]), max(1, round(side / 128)), (0, 0, 255), -1)


def _pixel(at: tuple[float, float]) -> tuple[int, int]:
    return int(np.floor(at[0])), int(np.floor(at[1]))


def _inside(position: float, length: int) -> int:
    return min(length - 1, max(0, round(position)))
