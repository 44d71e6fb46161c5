"""A bar over long work, with the time that is left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more of `total` are done; `done` of them were before.

    A bar on a terminal; elsewhere a plain line at every tenth, so that a log shows how far the work is.
    """
    console = get_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)

        def advance(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            bar.advance(task, count)
            if not console.is_terminal and total >= 1000 and 10 * before // total < 10 * done // total:
                console.print(f"{title}: {done:,} of {total:,}", markup=False, highlight=False, soft_wrap=True)

        yield advance
