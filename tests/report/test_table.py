"""A table of text shows every figure, however narrow the terminal."""

import io

import pytest
from rich.console import Console

from cnx.report.table import Table


@pytest.mark.parametrize("width", [70, 80, 120])
def test_no_figure_is_cut_where_the_words_beside_it_are_short(width: int) -> None:
    heads = ["experiment", "init", "fidelity", "convergence step", "seconds", "images/s"]
    row = ["transfer_fresh", "sd_copy", "0.30", "not by 2,000", "598", "37.52"]
    console = Console(width=width, file=io.StringIO())
    console.print(Table("Runs", heads, [row], words={"experiment", "init"}))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(figure in written for figure in ("0.30", "598", "37.52"))
    assert max(map(len, written.splitlines())) <= width
