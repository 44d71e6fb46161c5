"""Birds in flight as a few flat outlines: a bird posed in space, then seen from one side.

A bird's own axes: x ahead, y to its left, z up; half a wingspan is 1. A wing is a surface: `s` runs from shoulder (0)
to tip (1) along an arc that flapping bends, and its chord lies along x.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from cnx.data.synthetic.surface import Ball, Sheet, Spindle, Surface

Outline = Float[np.ndarray, "n 2"]
Points = Float[np.ndarray, "n 3"]  # in the image plane, x right and y down, and the distance from the viewer


@dataclass(frozen=True)
class Species:
    """The proportions of one kind of bird, in half wingspans.

    forward: how far the wrist stands before the shoulder; sweep: how far the tip lies behind the wrist.
    blunt: 2 for a pointed wing, more for a rounder one. fork: how deep the tail is cut, as a share of its length;
    negative where its middle is longest.
    """

    chord: float
    forward: float
    sweep: float
    blunt: float
    body: float
    girth: float
    neck: float
    head: float
    beak: float
    tail: float
    tail_width: float
    fork: float
    fingers: bool = False


SPECIES = {
    "gull": Species(0.34, 0.13, 0.36, 1.7, 0.74, 0.115, 0.02, 0.092, 0.13, 0.22, 0.13, -0.1),
    "swallow": Species(0.42, 0.13, 0.70, 1.6, 0.64, 0.115, 0.0, 0.096, 0.07, 0.50, 0.23, 0.6),
    "goose": Species(0.42, 0.09, 0.26, 2.2, 0.72, 0.145, 0.42, 0.088, 0.13, 0.17, 0.13, -0.15),
    "eagle": Species(0.44, 0.10, 0.02, 9.0, 0.74, 0.13, 0.03, 0.1, 0.12, 0.32, 0.2, -0.12, True),
    "dove": Species(0.46, 0.12, 0.40, 2.4, 0.74, 0.145, 0.0, 0.1, 0.075, 0.38, 0.25, -0.15),
    "parrot": Species(0.44, 0.12, 0.36, 2.6, 0.66, 0.135, 0.0, 0.118, 0.1, 0.8, 0.11, -0.6),
}


@dataclass(frozen=True)
class Pose:
    """How one bird is held and seen; angles in radians.

    flap: the phase of the wing beat, 0 gliding, pi/2 wings highest. yaw: 0 seen exactly from its right side, more turns
    it towards the viewer. elevation: how far below the bird the viewer stands (negative: above). roll: in the image,
    counterclockwise. mirror: it flies to the left.
    """

    species: str
    flap: float
    yaw: float
    elevation: float
    roll: float
    mirror: bool


@dataclass(frozen=True)
class Part:
    """One outline, the name of its tone and the surface that it bounds, in the order of painting.

    x to the right, y down. The surface stays in the bird's own units, wherever the outline is moved.
    """

    tone: str
    outline: Outline
    surface: Surface


@dataclass(frozen=True)
class Figure:
    """A bird as it is seen, around its body: outlines, farthest first, and joints (x right, y down) by name."""

    parts: list[Part]
    joints: dict[str, tuple[float, float]]


def smooth(points: np.ndarray, per: int = 6, closed: bool = False) -> np.ndarray:
    """A Catmull-Rom curve through `points` (n, d), `per` positions for each piece."""
    p = (
        np.concatenate([points[-1:], points, points[:2]])
        if closed
        else np.concatenate([points[:1], points, points[-1:]])
    )
    t = (np.arange(per) / per)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None, :] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.reshape(-1, points.shape[1])
    return curve if closed else np.concatenate([curve, points[-1:]])


S = np.linspace(0, 1.2, 37)  # beyond the tip, for the finger feathers of an eagle


class _View:
    """Turns positions of a bird's own axes into the image plane."""

    def __init__(self, pose: Pose) -> None:
        cy, sy, ce, se = np.cos(pose.yaw), np.sin(pose.yaw), np.cos(pose.elevation), np.sin(pose.elevation)
        # Rows: right, up, away from the viewer.
        turn = np.array([[cy, sy, 0], [se * sy, -se * cy, ce], [-ce * sy, ce * cy, se]])
        cr, sr = np.cos(pose.roll), np.sin(pose.roll)
        self.turn = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]) @ turn
        self.mirror = -1.0 if pose.mirror else 1.0

    def flat(self, points: np.ndarray) -> Outline:
        """Image plane positions, x right and y down, of (n, 3) positions."""
        # Sums written out: a matrix product could round differently with another BLAS.
        x, y, z = points[:, 0], points[:, 1], points[:, 2]
        u = self.turn[0, 0] * x + self.turn[0, 1] * y + self.turn[0, 2] * z
        v = self.turn[1, 0] * x + self.turn[1, 1] * y + self.turn[1, 2] * z
        return np.stack([self.mirror * u, -v], 1)

    def away(self, points: np.ndarray) -> Float[np.ndarray, " n"]:
        """The distance from the viewer, less that of the bird's middle; of (n, 3) positions."""
        return (points * self.turn[2]).sum(1)

    def seen(self, points: np.ndarray) -> Points:
        """(n, 3) positions in the image plane, with their distance."""
        return np.concatenate([self.flat(points), self.away(points)[:, None]], 1)

    def joint(self, x: float, y: float, z: float) -> tuple[float, float]:
        """One position in the image plane."""
        u, v = self.flat(np.array([[x, y, z]]))[0].tolist()
        return u, v


def figure(pose: Pose) -> Figure:
    """A bird in half wingspans around its body."""
    kind, view = SPECIES[pose.species], _View(pose)
    wings = {side: _wing(kind, pose, view, side) for side in (-1, 1)}
    near, far = sorted(wings, key=lambda side: wings[side][0])
    far_wing = [replace(part, tone="far_" + part.tone) for part in wings[far][1]]
    near_wing = [replace(part, tone="near_" + part.tone) for part in wings[near][1]]
    tail, body, joints = _tail(kind, pose, view), _body(kind, pose, view), _spine(kind, view)
    for side, (_, _, (bend, tip)) in wings.items():
        # A mirrored left wing is a right one.
        name = "left wing" if (side > 0) != pose.mirror else "right wing"
        joints |= {f"{name} bend": bend, f"{name} tip": tip}
    if pose.elevation > 0.6:  # from well below, the breast hides the shoulders and both wings are in the same light
        plain = [replace(part, tone="near_" + part.tone) for part in wings[far][1]]
        return Figure(tail + plain + near_wing + body, joints)
    return Figure(far_wing + tail + body + near_wing, joints)


def _wing(
    kind: Species, pose: Pose, view: _View, side: int
) -> tuple[float, list[Part], tuple[tuple[float, float], tuple[float, float]]]:
    """The depth, the outlines, and the two joints (bend and tip) of one wing; `side` +1 is the bird's left."""
    beat, late = np.sin(pose.flap), np.sin(pose.flap - 0.7)
    inner, outer = 0.2 + 0.75 * beat, -0.12 + 0.95 * late
    bend = np.clip((S - 0.15) / 0.6, 0, 1)
    angle = inner + (outer - inner) * bend * bend * (3 - 2 * bend)
    step = np.full(len(S), S[1])
    across = np.concatenate([[0], np.cumsum(np.cos(angle) * step)[:-1]]) + 0.5 * kind.girth
    above = np.concatenate([[0], np.cumsum(np.sin(angle) * step)[:-1]]) + 0.35 * kind.girth

    def lift(s: np.ndarray, x: np.ndarray) -> np.ndarray:
        y, z = np.interp(s, S, across), np.interp(s, S, above)
        return np.stack([x, side * y, z], 1)

    def place(s: np.ndarray, x: np.ndarray) -> Outline:
        return view.flat(lift(s, x))

    s = np.sin(np.linspace(0, 0.5 * np.pi, 25))  # closer towards the tip, where the outline turns
    hand = np.clip((s - 0.32) / 0.68, 0, None)
    lead = 0.42 * kind.chord + kind.forward * np.sin(np.pi * np.minimum(s * 1.25, 1)) - kind.sweep * hand**1.5
    end = 0.70 if kind.fingers else 1.0
    s_end = s * end
    chord = kind.chord * np.maximum(1 - s**kind.blunt, 0) ** (0.5 if kind.fingers else 0.85)
    if not kind.fingers:
        # Each scallop is a group of flight feathers; broad, so that a small VAE can still draw it.
        chord = chord * (1 + 0.08 * np.abs(np.sin(4 * np.pi * s)) * np.minimum(1, 4 * (1 - s)))
    trail = lead - chord
    sheet = np.stack([lead, side * np.interp(s_end, S, across), np.interp(s_end, S, above)], 1)
    whole = np.concatenate([place(s_end, lead), place(s_end[::-1], trail[::-1])])
    coverts = np.concatenate([place(s_end, lead), place(s_end[::-1], (lead - 0.5 * chord)[::-1])])
    web = Sheet.through(view.seen(np.concatenate([lift(s_end, lead - share * chord) for share in (0, 0.5, 1)])))
    out = []
    if kind.fingers:
        # Five finger feathers, last to first, from a line across the wing's end.
        for angle_, length, at in (
            (-0.62, 0.40, 0.80),
            (-0.36, 0.50, 0.62),
            (-0.12, 0.56, 0.46),
            (0.1, 0.56, 0.30),
            (0.3, 0.5, 0.16),
        ):
            root_x = float(np.interp(0.8, s, lead - at * chord))
            out.append(Part("tip", place(*_feather(0.54, root_x, angle_, length, 0.058)), web))
    out += [Part("flight", whole, web), Part("wing", coverts, web)]
    if not kind.fingers:
        cut = s > 0.66
        tip = np.concatenate([place(s[cut], lead[cut]), place(s[cut][::-1], trail[cut][::-1])])
        out.append(Part("tip", tip, web))
    at_bend, at_tip = (
        view.joint(*lift(np.array([at * end]), np.array([np.interp(at, s, lead - 0.15 * chord)]))[0])
        for at in (0.4, 0.98)
    )
    return float(view.away(sheet).mean()), out, (at_bend, at_tip)


def _feather(s: float, x: float, angle: float, length: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """A leaf from (s, x) towards `angle` (0 straight out, more: forward), in the surface of the wing."""
    along = np.array([0, 0.3, 0.65, 0.9, 1.0, 0.9, 0.65, 0.3]) * length
    beside = np.array([0.8, 1.0, 0.9, 0.55, 0, -0.55, -0.9, -1.0]) * width
    leaf = smooth(np.stack([along, beside], 1), 4, closed=True)
    c, n = np.cos(angle), np.sin(angle)
    return np.clip(s + c * leaf[:, 0] - n * leaf[:, 1], 0, S[-1]), x + n * leaf[:, 0] + c * leaf[:, 1]


def _tail(kind: Species, pose: Pose, view: _View) -> list[Part]:
    """The tail, a fan behind the body, tilted towards the viewer so that it shows from the side too."""
    tilt = -0.55 if pose.elevation > 0 else 0.55
    j = np.linspace(-1, 1, 13)
    root = -0.30 * kind.body
    cut = kind.fork * (1 - np.abs(j) ** 1.3) if kind.fork > 0 else -kind.fork * j**2
    end = -0.44 * kind.body - kind.tail * (1 - cut)
    fan = np.concatenate(
        [
            [[root, -0.6 * kind.girth, 0]],
            np.stack([end, kind.tail_width * j, tilt * kind.tail_width * j], 1),
            [[root, 0.6 * kind.girth, 0]],
        ]
    )
    return [Part("tail", view.flat(fan), Sheet.through(view.seen(fan)))]


def _spine(kind: Species, view: _View) -> dict[str, tuple[float, float]]:
    """The joints from beak to tail."""
    face = 0.42 * kind.body + kind.neck
    return {
        "beak": view.joint(face + kind.head + 0.8 * kind.beak, 0, 0.03),
        "head": view.joint(face, 0, 0.04),
        "body": view.joint(0.05 * kind.body, 0, -0.02),
        "tail": view.joint(-0.44 * kind.body - 0.6 * kind.tail, 0, 0),
    }


def _body(kind: Species, pose: Pose, view: _View) -> list[Part]:
    """Body, neck and head as one spindle, then belly, beak and eye."""
    long, girth, head = kind.body, kind.girth, kind.head
    face = 0.42 * long + kind.neck
    knots = np.array(  # x, z, radius
        [
            [-0.52 * long, 0.02, 0.12 * girth],
            [-0.38 * long, 0.01, 0.50 * girth],
            [-0.15 * long, -0.01, 0.90 * girth],
            [0.08 * long, -0.02, 1.0 * girth],
            [0.27 * long, 0.0, 0.82 * girth],
            [0.42 * long + 0.35 * (kind.neck - head), 0.02, 0.62 * girth if kind.neck > 0.1 else 0.88 * head],
            [face - 0.9 * head, 0.035, 0.52 * girth if kind.neck > 0.1 else 0.92 * head],
            [face, 0.04, head],
            [face + 0.55 * head, 0.035, 0.80 * head],
            [face + 1.0 * head, 0.03, 0.15 * head],
        ]
    )
    curve = smooth(knots, 4)
    line = np.stack([curve[:, 0], 0 * curve[:, 0], curve[:, 1]], 1)
    axis = view.flat(line)
    radius = curve[:, 2:]
    ahead = axis[-1] - axis[0]
    shown = np.sqrt((ahead**2).sum())  # the length that foreshortening leaves
    ahead = ahead / shown
    shown = shown / (1.0 * long + kind.neck + head)
    down = np.array([-ahead[1], ahead[0]])
    if down[1] < 0:
        down = -down
    spindle = np.concatenate([axis + radius * down, (axis - radius * down)[::-1]])
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)[:, None]
    ring = np.cos(turn) * ahead + np.sin(turn) * down
    middles = np.array([[0.05 * long, 0, -0.02], [face, 0, 0.04]])
    centre = view.flat(middles)
    barrel = Spindle(view.seen(line), radius[:, 0])
    at_breast, at_face = view.seen(middles)
    breast, skull = Ball.around(at_breast, girth), Ball.around(at_face, head)
    beak_reach = head + kind.beak * max(shown, 0.5)
    droop = 0.35 if pose.species in ("eagle", "parrot") else 0.12
    beak = np.array([[0.55, -0.52], [0.85, -0.50], [0, 0], [0.85, 0.52], [0.55, 0.55]]) * head
    beak[2] = beak_reach, droop * kind.beak
    beak = centre[1] + beak[:, :1] * ahead + beak[:, 1:] * down
    out = [
        Part("beak", beak, Ball.around(at_face, beak_reach)),
        Part("body", spindle, barrel),
        Part("body", centre[0] + girth * ring, breast),
        Part("body", centre[1] + head * ring, skull),
    ]
    if abs(pose.elevation) < 0.6:
        low = slice(6, -9)
        belly = np.concatenate([(axis + 0.25 * radius * down)[low], (axis + 0.98 * radius * down)[low][::-1]])
        out.append(Part("belly", belly, barrel))
        eye = centre[1] + 0.22 * head * ring + head * (0.38 * max(shown, 0.3) * ahead - 0.22 * down)
        out.append(Part("eye", eye, skull))
    return out
