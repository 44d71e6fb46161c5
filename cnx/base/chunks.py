"""As much at once as the device's memory takes."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def in_chunks(function: Callable[[slice], Tensor], rows: int, at_once: int) -> tuple[Tensor, int]:
    """`each_chunk`, its results in one tensor."""
    done, at_once = each_chunk(function, rows, at_once)
    return (done[0] if len(done) == 1 else torch.cat(done)), at_once


def each_chunk(function: Callable[[slice], Result], rows: int, at_once: int) -> tuple[list[Result], int]:
    """`function` of one slice of `rows` rows after another: its results, and how many rows it took at once.

    A slice holds `at_once` rows. Where the device has too little memory for that, half as many are tried, and half of
    those, down to one, whose torch.OutOfMemoryError is raised.
    """
    done: list[Result] = []
    begin = 0
    while begin < rows:
        try:
            done.append(function(slice(begin, begin + at_once)))
            begin += at_once
            continue
        except torch.OutOfMemoryError:
            if min(at_once, rows - begin) == 1:
                raise
            at_once = min(at_once, rows - begin) // 2
        # Out here the exception no longer holds what was computed before it.
        torch.cuda.empty_cache()
    return done, at_once
