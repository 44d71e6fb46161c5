import shutil

import pytest

from cnx.data.folder import Item, read_folder
from cnx.data.split import Digest, digest, digest_all, is_held_out
from cnx.errors import InputError


def held_out(root, fraction: float) -> set[bytes]:
    """Target bytes of the held-out items of a folder."""
    items = read_folder(root)
    digests = digest_all(items)
    return {
        item.target.read_bytes()
        for item, found in zip(items, digests, strict=True)
        if isinstance(found, Digest) and is_held_out(found.target, fraction)
    }


def test_the_split_does_not_depend_on_order_names_or_total(write_folder):
    all_seeds = list(range(40))
    whole = write_folder(40, "whole")
    shuffled = write_folder(40, "shuffled", seeds=all_seeds[::-1])
    part = write_folder(25, "part")
    held = held_out(whole, 0.3)
    assert 0 < len(held) < 40
    assert held_out(shuffled, 0.3) == held
    assert held_out(part, 0.3) == {
        item.target.read_bytes() for item in read_folder(whole)[:25] if item.target.read_bytes() in held
    }


def test_copies_of_an_image_fall_on_the_same_side(write_folder):
    root = write_folder(20)
    items = read_folder(root)
    for item in items:
        copy = root / "target" / f"copy of {item.target.name}"
        shutil.copy(item.target, copy)
        other = Item(item.source, copy, "another prompt")
        assert is_held_out(digest(other).target, 0.5) == is_held_out(digest(item).target, 0.5)
        assert digest(other).item != digest(item).item


def test_the_fraction_held_out_is_the_fraction_wanted():
    import hashlib

    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20_000)]
    for fraction in (0.02, 0.5):
        count = sum(is_held_out(found, fraction) for found in digests)
        deviation = (20_000 * fraction * (1 - fraction)) ** 0.5
        assert abs(count - 20_000 * fraction) < 4 * deviation
    assert not any(is_held_out(found, 0.0) for found in digests)
    assert is_held_out("0" * 64, 1e-9) and not is_held_out("f" * 64, 1 - 1e-9)


def test_more_is_held_out_at_a_larger_fraction_and_never_something_else(write_folder):
    root = write_folder(40)
    assert held_out(root, 0.2) <= held_out(root, 0.4) <= held_out(root, 0.9)


def test_the_digest_follows_the_content_of_every_part(write_folder):
    item, other = read_folder(write_folder(2))
    before = digest(item)
    assert digest(Item(other.source, item.target, item.prompt)).item != before.item
    assert digest(Item(item.source, other.target, item.prompt)).item != before.item
    assert digest(Item(item.source, item.target, "other")).item != before.item
    moved = item.source.with_name("moved.png")
    item.source.rename(moved)
    assert digest(Item(moved, item.target, item.prompt)) == before


def test_a_file_that_is_gone_is_reported_in_its_place(write_folder):
    items = read_folder(write_folder(3))
    items[1].target.unlink()
    with pytest.raises(InputError, match="1.png"):
        digest(items[1])
    assert [isinstance(found, InputError) for found in digest_all(items)] == [False, True, False]
