"""Several control maps of each picture: data sets that hold the same pictures, put together."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Shaped

from cnx.data.folder import Item
from cnx.data.index import BAD, GOOD
from cnx.data.items import Items, key
from cnx.errors import InputError


class Together(Items):
    """Data sets that list the same pictures in one order: the first's items, each with the maps of all."""

    def __init__(self, sets: Sequence[Items]) -> None:
        self.sets = sets
        self.identity = key(items.identity for items in sets)
        self.shards = sets[0].shards

    def __len__(self) -> int:
        return len(self.sets[0])

    def item(self, at: int) -> Item:
        first, *others = (items[at] for items in self.sets)
        return replace(first, more=tuple(other.source for other in others))


def put_together(
    roots: Sequence[str], sets: Sequence[Items], indexed: Sequence[Shaped[np.ndarray, " n"]]
) -> tuple[Items, Shaped[np.ndarray, " n"]]:
    """The data sets at `roots` as one, and its index from theirs (`cnx.data.index`); one alone is as it is.

    Raises InputError where they list other pictures, or the same in another order.
    """
    if len(sets) == 1:
        return sets[0], indexed[0]
    remedy = "give data sets of the same pictures in the same order"
    for root, items in zip(roots, sets, strict=True):
        if len(items) != len(sets[0]):
            raise InputError(f"data.root: {len(sets[0]):,} items in {roots[0]}, {len(items):,} in {root}; {remedy}")
    records = indexed[0].copy()
    for root, items, others in zip(roots[1:], sets[1:], indexed[1:], strict=True):
        records["state"] = np.where(others["state"] == BAD, BAD, records["state"])
        differ = (records["target"] != others["target"]) & (records["state"] == GOOD)
        if differ.any():
            at = int(np.flatnonzero(differ)[0])
            raise InputError(
                f"data.root: item {at + 1:,} is {sets[0][at].target} in {roots[0]}, and another picture,"
                f" {items[at].target}, in {root}; {remedy}"
            )
    digests = zip(*(each["item"] for each in indexed), strict=True)
    records["item"] = [hashlib.sha256(b"".join(map(bytes, each))).digest() for each in digests]
    return Together(sets), records
