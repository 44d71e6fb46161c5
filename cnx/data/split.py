"""Which items are held out: decided by what is in the files, not by where they stand."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from rich import get_console
from rich.progress import track

from cnx.data.folder import File, Item, read_file
from cnx.errors import InputError


class Digest(NamedTuple):
    """sha256 in hex of an item's content (source bytes, target bytes, prompt) and of its target bytes alone."""

    item: str
    target: str


def digest(item: Item) -> Digest:
    """Hash an item's files and prompt; names and places of the files do not matter.

    Raises:
        InputError: a file that cannot be read.
    """
    source, target = _hash_file(item.source), _hash_file(item.target)
    whole = hashlib.sha256(source + target + item.prompt.encode())
    return Digest(whole.hexdigest(), target.hex())


def digest_all(items: Sequence[Item]) -> list[Digest | InputError]:
    """Hash all items in threads, in order; an item that cannot be read gives its error in place of a digest."""

    def attempt(item: Item) -> Digest | InputError:
        try:
            return digest(item)
        except InputError as error:
            return error

    # Hashing and reading release the GIL, and more threads than cores hide a slow disk.
    with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
        found = pool.map(attempt, items)
        hidden = not get_console().is_terminal
        return list(track(found, "Reading the data set", total=len(items), transient=True, disable=hidden))


def position(target_digest: str) -> float:
    """Map the sha256 of a target's bytes to a number uniform in [0, 1)."""
    return (int(target_digest, 16) >> (256 - 53)) / 2**53  # a float has 53 bits: more would round up to 1.0


def is_held_out(target_digest: str, fraction: float) -> bool:
    """Decide whether an item is held out, so that `fraction` of all targets are.

    It depends on the bytes of the target alone: copies of an image fall on the same side, and so does an image in
    a data set that grew, shrank or was sorted anew. An item held out at some fraction is held out at any larger one.
    """
    return position(target_digest) < fraction


def _hash_file(file: File) -> bytes:
    return hashlib.sha256(read_file(file)).digest()
