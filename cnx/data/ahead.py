"""A map in threads that keeps its order and reads no further ahead than it must."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
R = TypeVar("R")
LONG = 10_000  # of whatever is counted: below, a log needs no progress


def map_ahead(
    function: Callable[[T], R], values: Iterable[T], ahead: int, workers: int | None = None
) -> Generator[R, None, None]:
    """Yield `function` of each value in order; the next `ahead` values are worked on in `workers` threads meanwhile.

    Reading, hashing and decoding release Python's lock, and more threads than cores hide a slow disk.
    """
    with ThreadPoolExecutor(max_workers=workers or 2 * (os.cpu_count() or 1)) as pool:
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
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more of `total` are done; `done` of them were before.

    Shows a bar with the time left on a terminal; elsewhere a plain line at every tenth of long work, so that a log
    shows how far it is.
    """
    console = get_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)

        def advance(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            bar.advance(task, count)
            if not console.is_terminal and total >= LONG and 10 * before // total < 10 * done // total:
                console.print(f"{title}: {done:,} of {total:,}", markup=False, highlight=False, soft_wrap=True)

        yield advance
