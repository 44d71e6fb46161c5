"""The photos in a folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from cnx.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo's file: where it is under the folder of photos (with `/`), its size in bytes, when it was changed."""

    path: str
    bytes: int
    mtime_ns: int


def find_photos(root: Path) -> tuple[list[Photo], int]:
    """The picture files (by suffix) in `root` and all folders in it, by path, and the number of other files.

    Names that begin with a dot are passed over: trash, thumbnails, and what macOS writes beside each file. Links to
    folders are followed, each folder once.

    Raises:
        InputError: no such folder, a folder that may not be read, no pictures.
    """
    if not root.is_dir():
        raise InputError(f"source={root}: no such folder; give the folder with your photos")
    photos: list[Photo] = []
    others = 0
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise InputError(f"source={root}: {error.filename} cannot be read ({error.strerror})") from None

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            if not name.lower().endswith(SUFFIXES):
                others += 1
                continue
            path = os.path.join(folder, name)
            try:
                found = os.stat(path)
            except OSError:  # a link that leads nowhere: reading it will say so
                found = os.lstat(path)
            photos.append(Photo(Path(path).relative_to(root).as_posix(), found.st_size, found.st_mtime_ns))
    if not photos:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        beside = f" ({others:,} other files)" if others else ""
        raise InputError(f"source={root}: no pictures in that folder or below it{beside}; known are {kinds}")
    return sorted(photos, key=lambda photo: photo.path), others
