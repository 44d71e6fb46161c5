"""Scribbles as a person would draw them of a photo: shaky, incomplete, of varying strength."""

import cv2
import numpy as np

from cnx.condition.condition import Agreement, Pixels, in_all_channels
from cnx.condition.noise import generator_of, smooth_noise
from cnx.condition.scribble import Scribble


class FakeScribble(Scribble):
    """Synthesised scribbles, thick white strokes on black: the paper's strong augmentation of soft edges.

    What is trained on them takes a person's strokes, too (arXiv 2302.05543 v1, user sketching: random thresholds, a
    random share masked out, random morphological transformations, non-maximum suppression).
    The photo's content is the seed: the same photo has the same scribble.

    Args:
        path, threshold, width: as `Scribble`'s; the latter two vary by half up and down.
        masked: how much of the picture at most is left without strokes, in [0, 1].
        shake: how far at most a stroke strays, px at 512 px of the shorter side.

    Raises:
        InputError: `path` is of no use (`Annotator`).
    """

    def __init__(
        self,
        path: str | None = None,
        threshold: float = 0.3,
        width: float = 10.0,
        masked: float = 0.3,
        shake: float = 6.0,
    ) -> None:
        super().__init__(path, threshold, width)
        self.masked, self.shake = masked, shake

    def __call__(self, image: Pixels) -> Pixels:
        rng = generator_of(image)
        height, width = image.shape[:2]
        unit = min(height, width) / 512
        strokes = self.trace(image, self.threshold * rng.uniform(0.5, 1.5))
        field = smooth_noise(rng, height, width, 64 * unit)
        strokes &= field >= np.quantile(field, rng.uniform(0, self.masked))
        strokes = self.thicken(strokes, self.width * rng.uniform(0.5, 1.5))
        stray = [(2 * smooth_noise(rng, height, width, 48 * unit) - 1) * self.shake * unit for _ in range(2)]
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        shaken = cv2.remap(strokes.astype(np.float32), x + stray[0], y + stray[1], cv2.INTER_LINEAR)
        return in_all_channels((shaken > 0.5) * np.uint8(255))

    def judge(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """The drawing is annotated without chance: another picture would draw other strokes of the same edges."""
        return self.compare(in_all_channels(self.strokes(drawn) * np.uint8(255)), wanted)
