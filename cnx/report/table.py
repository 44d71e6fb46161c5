"""A table of text, for the terminal, for Markdown and for a page."""

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

WIDE = 110  # characters; a narrower terminal has no room for spare columns


@dataclass(frozen=True)
class Table:
    """Rows of text under columns.

    Attributes:
        words: the columns that hold words, not numbers.
        spare: the column to leave out where there is little room.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    words: set[str]
    spare: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = [i for i, column in enumerate(self.columns) if column != self.spare or options.max_width >= WIDE]
        table = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for i in shown:
            words, cells = self.columns[i] in self.words, [row[i] for row in self.rows]
            # A name may be broken, a number not.
            longest = max((len(part) for cell in cells for part in ([cell] if words else cell.split())), default=0)
            least = min(16, longest) if words else longest
            table.add_column(self.columns[i], justify="left" if words else "right", overflow="fold", min_width=least)
        for row in self.rows:
            table.add_row(*(escape(row[i]) for i in shown))
        yield Text(self.title, "bold")
        yield table

    def markdown(self) -> str:
        """The table under its title as a heading, in GitHub's Markdown."""
        marks = ["---" if column in self.words else "---:" for column in self.columns]
        lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in self.rows]
        table = [f"| {' | '.join(line)} |" for line in [self.columns, marks, *lines]]
        return "\n".join([f"## {self.title}", "", *table]) + "\n"
