"""Fill50K drawn again: a filled circle on a flat ground, controlled by the circle's outline.

After the data set of ControlNet's docs/train.md; its prompts name CSS colours, split into words.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from cnx.condition import Condition, Geometry
from cnx.data.synthetic.pair import Pair, control_map, unlike_own
from cnx.data.synthetic.surface import Ball
from cnx.data.synthetic.truth import BALL, WALL, Canvas

SEED = 50_000
SHIFT = 4  # cv2 takes positions in 1/16 pixel

# The CSS named colours, one name for each colour: grey stands for gray, aqua for cyan, fuchsia for magenta.
CSS = {
    name.strip(): int(code, 16)
    for name, code in (
        entry.strip().rsplit(" ", 1)
        for entry in """
alice blue f0f8ff, antique white faebd7, aqua 00ffff, aqua marine 7fffd4, azure f0ffff, beige f5f5dc, bisque ffe4c4,
black 000000, blanched almond ffebcd, blue 0000ff, blue violet 8a2be2, brown a52a2a, burly wood deb887,
cadet blue 5f9ea0, chart reuse 7fff00, chocolate d2691e, coral ff7f50, corn flower blue 6495ed, corn silk fff8dc,
crimson dc143c, dark blue 00008b, dark cyan 008b8b, dark golden rod b8860b, dark grey a9a9a9, dark green 006400,
dark khaki bdb76b, dark magenta 8b008b, dark olive green 556b2f, dark orange ff8c00, dark orchid 9932cc,
dark red 8b0000, dark salmon e9967a, dark sea green 8fbc8f, dark slate blue 483d8b, dark slate grey 2f4f4f,
dark turquoise 00ced1, dark violet 9400d3, deep pink ff1493, deep sky blue 00bfff, dim grey 696969,
dodger blue 1e90ff, fire brick b22222, floral white fffaf0, forest green 228b22, fuchsia ff00ff, gainsboro dcdcdc,
ghost white f8f8ff, gold ffd700, golden rod daa520, grey 808080, green 008000, green yellow adff2f, honey dew f0fff0,
hot pink ff69b4, indian red cd5c5c, indigo 4b0082, ivory fffff0, khaki f0e68c, lavender e6e6fa,
lavender blush fff0f5, lawn green 7cfc00, lemon chiffon fffacd, light blue add8e6, light coral f08080,
light cyan e0ffff, light golden rod yellow fafad2, light grey d3d3d3, light green 90ee90, light pink ffb6c1,
light salmon ffa07a, light sea green 20b2aa, light sky blue 87cefa, light slate grey 778899,
light steel blue b0c4de, light yellow ffffe0, lime 00ff00, lime green 32cd32, linen faf0e6, maroon 800000,
medium aqua marine 66cdaa, medium blue 0000cd, medium orchid ba55d3, medium purple 9370db, medium sea green 3cb371,
medium slate blue 7b68ee, medium spring green 00fa9a, medium turquoise 48d1cc, medium violet red c71585,
midnight blue 191970, mint cream f5fffa, misty rose ffe4e1, moccasin ffe4b5, navajo white ffdead, navy 000080,
old lace fdf5e6, olive 808000, olive drab 6b8e23, orange ffa500, orange red ff4500, orchid da70d6,
pale golden rod eee8aa, pale green 98fb98, pale turquoise afeeee, pale violet red db7093, papaya whip ffefd5,
peach puff ffdab9, peru cd853f, pink ffc0cb, plum dda0dd, powder blue b0e0e6, purple 800080, rebecca purple 663399,
red ff0000, rosy brown bc8f8f, royal blue 4169e1, saddle brown 8b4513, salmon fa8072, sandy brown f4a460,
sea green 2e8b57, sea shell fff5ee, sienna a0522d, silver c0c0c0, sky blue 87ceeb, slate blue 6a5acd,
slate grey 708090, snow fffafa, spring green 00ff7f, steel blue 4682b4, tan d2b48c, teal 008080, thistle d8bfd8,
tomato ff6347, turquoise 40e0d0, violet ee82ee, wheat f5deb3, white ffffff, white smoke f5f5f5, yellow ffff00,
yellow green 9acd32
""".replace("\n", " ").split(",")
    )
}
NAMES = tuple(CSS)


def rgb(name: str) -> tuple[int, int, int]:
    """The colour named `name` in CSS, 0 to 255 a channel; KeyError where the name is none."""
    code = CSS[name]
    return code >> 16, code >> 8 & 255, code & 255


def difference(a: tuple[int, int, int], b: tuple[int, int, int]) -> int:
    """How unlike two RGB colours look, squared: 0 to about 584,000 ("redmean", in integers, so the same everywhere)."""
    red = (a[0] + b[0]) // 2
    r, g, b_ = (x - y for x, y in zip(a, b, strict=True))
    return ((512 + red) * r * r >> 8) + 4 * g * g + ((767 - red) * b_ * b_ >> 8)


@cache
def _unlike(name: str) -> tuple[str, ...]:
    """The colours that a circle of colour `name` stands out from."""
    return tuple(other for other in NAMES if difference(rgb(name), rgb(other)) >= 150**2)


@dataclass(frozen=True)
class Circle:
    """One item: centre and radius as shares of the image's side, and the two colours' names."""

    x: float
    y: float
    radius: float
    colour: str
    ground: str

    @property
    def prompt(self) -> str:
        """The caption, as the real Fill50K words it."""
        return f"{self.colour} circle with {self.ground} background"


@dataclass(frozen=True)
class Fill50K:
    """50,000 filled circles; control: the white outline on black, or what `condition` draws."""

    name: str = "fill50k"
    count: int = 50_000
    version: int = 1
    condition: Condition | None = None

    def scene(self, index: int) -> Circle:
        """What item `index` shows, before any pixel."""
        rng = np.random.default_rng([SEED, index])
        radius = 0.06 + 0.30 * rng.random()
        x, y = radius + 0.02 + (0.96 - 2 * radius) * rng.random(2)
        colour = NAMES[rng.integers(len(NAMES))]
        grounds = _unlike(colour)
        return Circle(float(x), float(y), float(radius), colour, grounds[rng.integers(len(grounds))])

    def draw(self, index: int, size: int) -> Pair:
        """Draw item `index`, 0 or more, as a square of `size` pixels."""
        circle = self.scene(index)
        unit = size * (1 << SHIFT)
        # A pixel's centre, not its corner, is cv2's integer position: hence the half pixel.
        centre = (round(circle.x * unit) - (1 << SHIFT >> 1), round(circle.y * unit) - (1 << SHIFT >> 1))
        radius = round(circle.radius * unit)
        target = np.empty((size, size, 3), np.uint8)
        target[:] = rgb(circle.ground)
        cv2.circle(target, centre, radius, rgb(circle.colour), cv2.FILLED, cv2.LINE_AA, SHIFT)
        if condition := unlike_own(self.condition):
            source = control_map(condition, target, lambda: self.geometry(index, size))
            return Pair(source, target, circle.prompt)
        source = np.zeros((size, size, 3), np.uint8)
        cv2.circle(source, centre, radius, (255, 255, 255), max(1, round(size / 256)), cv2.LINE_AA, SHIFT)
        return Pair(source, target, circle.prompt)

    def geometry(self, index: int, size: int) -> Geometry:
        """The space that item `index` shows: a ball before a wall, without a skeleton or anything straight."""
        circle = self.scene(index)
        canvas = Canvas(size, WALL)
        x, y = np.meshgrid(*2 * [(np.arange(size) + 0.5) / size])
        where = np.hypot(x - circle.x, y - circle.y) < circle.radius
        canvas.lay_surface(where, BALL, Ball(0, 0, 0, 1), (0, 0), (circle.x, circle.y), circle.radius)
        return canvas.geometry(skeletons=None)

    def prompt(self, index: int) -> str:
        """The caption of item `index`, without drawing it."""
        return self.scene(index).prompt

    def vocabulary(self) -> list[str]:
        """Every word that a caption can hold, sorted."""
        return sorted({word for name in NAMES for word in name.split()} | {"circle", "with", "background"})
