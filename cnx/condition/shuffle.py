"""ControlNet 1.1's shuffle: the colours and textures of a picture, without its composition."""

import cv2

from cnx.condition.condition import Agreement, Condition, Pixels
from cnx.condition.noise import generator_of, smooth_noise
from cnx.metric import colour_overlap


class Shuffle(Condition):
    """Content shuffle of ControlNet 1.1: each pixel is fetched from where a smooth random flow says.

    The flow is seeded by the picture's content: the same picture has the same map.

    Args:
        cell: distance between the hills of the flow, px at 512 px of the shorter side. 256 is ControlNet's.
    """

    white = "no meaning of its own: a colour is a colour of the picture, somewhere else"
    licence = "Apache-2.0 (OpenCV)"
    measure = "overlap of Lab colour histograms, in [0, 1]; higher is better"

    def __init__(self, cell: float = 256.0) -> None:
        self.cell = cell

    def __call__(self, image: Pixels) -> Pixels:
        rng = generator_of(image)
        height, width = image.shape[:2]
        cell = self.cell * min(height, width) / 512
        from_x, from_y = (smooth_noise(rng, height, width, cell) * (side - 1) for side in (width, height))
        return cv2.remap(image, from_x, from_y, cv2.INTER_LINEAR)

    def compare(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """How much of their colours two maps share. There is no number in the literature to set beside it."""
        overlap = colour_overlap(drawn, wanted)
        return Agreement(overlap, overlap)

    def judge(self, drawn: Pixels, wanted: Pixels) -> Agreement:
        """The drawing is not shuffled, which would only take some of its colours away by chance."""
        return self.compare(drawn, wanted)
