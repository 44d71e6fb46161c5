"""A map in threads that keeps its order and reads no further ahead than it must."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], values: Iterable[T], ahead: int) -> Iterator[R]:
    """Yield `function` of each value in order; the next `ahead` values are worked on in threads meanwhile.

    Reading, hashing and decoding release Python's lock, and more threads than cores hide a slow disk.
    """
    with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for value in values:
                waiting.append(pool.submit(function, value))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time left, on a terminal; yields what moves it on by a number of items."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not get_console().is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
