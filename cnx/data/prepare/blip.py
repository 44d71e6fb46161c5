"""Prompts that BLIP writes."""

from collections.abc import Sequence
from pathlib import Path

from cnx.data.caption import Captioner
from cnx.data.folder import load_image
from cnx.errors import InputError


class Blip:
    """What BLIP sees in the prepared pictures, cropped as they are.

    Args:
        path, prefix: as in Captioner, which raises InputError where there is nothing to load.
        batch_size: pictures at once. Raises InputError below 1.
    """

    looks = True

    def __init__(self, path: str, prefix: str = "", batch_size: int = 16) -> None:
        if batch_size < 1:
            raise InputError(f"caption.batch_size={batch_size}: must be at least 1")
        self.batch_size = batch_size
        self.captioner = Captioner(path, prefix)

    def __call__(self, source: Path, photos: Sequence[str], pictures: Sequence[Path]) -> list[str]:
        return self.captioner.describe([load_image(picture) for picture in pictures])
