"""Curves over optimizer steps or samples seen, as a PNG for print and as SVG for a page."""

import io
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe & Ito's colours, which stay apart for the colour-blind; markers and dashes keep arms apart without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "os^DvP"
DASHES = ("-", "--", ":")
INK, PAPER = "#1a1a1a", "#ffffff"
RULE = "#c8c8c8"

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "axes.edgecolor": INK,
    "svg.fonttype": "none",  # text stays text, to be read aloud, found and set in the page's own font
    "svg.hashsalt": "cnx",  # the same figure gives the same file
}


@dataclass(frozen=True)
class Curve:
    """One run's points, and what to call it; curves of the same `arm` share colour and marker.

    Attributes:
        points: (x, y) of each, at least one.
        converged: the x of the convergence step, if there is one.
        phases: the x at which each phase began.
    """

    arm: str
    name: str
    points: Sequence[tuple[float, float]]
    converged: float | None = None
    phases: Sequence[float] = ()

    @property
    def xs(self) -> list[float]:
        return [x for x, _ in self.points]

    @property
    def ys(self) -> list[float]:
        return [y for _, y in self.points]


@dataclass(frozen=True)
class Panel:
    """Curves over one clock; at `level`, such as the fidelity at which runs count as converged, is a dotted line."""

    curves: Sequence[Curve]
    x: str
    y: str
    markers: bool = True
    level: float | None = None


def save_png(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels side by side, and write a PNG whole or not at all."""
    with matplotlib.rc_context(STYLE):
        figure = _draw(panels, width=5.2, height=3.6)
        part = path.with_name(path.name + ".part")
        figure.savefig(part, format="png", dpi=200)
        os.replace(part, path)


def svg(panel: Panel, name: str) -> Markup:
    """One panel as SVG to put into a page, where `name` is unique.

    Its ink is the page's text colour and its colours are the CSS variables --arm0 to --arm5. Each point is a
    `circle.hit` with the value in words as its <title>, which browsers show on hover without any JavaScript.
    """
    with matplotlib.rc_context(STYLE):
        figure = _draw([panel], width=4.5, height=3.2)
        figure.set_dpi(72)  # SVG's own unit, so that display coordinates are the file's
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    height = figure.get_figheight() * 72
    place = figure.axes[0].transData
    hits = []
    for curve in panel.curves:
        for x, y in curve.points:
            left, up = place.transform((x, y))
            mark = ", convergence" if x == curve.converged else ""
            words = f"{curve.name}: {panel.y} {y:z.3g} at {panel.x.removesuffix('s')} {x:,.0f}{mark}"
            at = f'cx="{left:.1f}" cy="{height - up:.1f}"'
            hits.append(f'<circle class="hit" {at} r="6"><title>{escape(words)}</title></circle>')
    text = file.getvalue()
    text = text[text.index("<svg") :].replace("</svg>", "".join(hits) + "</svg>")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", text)  # several figures share a page
    text = text.replace(INK, "currentColor").replace(RULE, "var(--rule)").replace(PAPER, "var(--paper)")
    for i, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--arm{i})")
    title = escape(f"{panel.y} against {panel.x}")
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1))


def _draw(panels: Sequence[Panel], width: float, height: float) -> Figure:
    arms = list(dict.fromkeys(curve.arm for panel in panels for curve in panel.curves))
    letters = int(width * len(panels) * 12) - 8  # of a line of the legend
    names = [textwrap.fill(arm, letters).replace("$", r"\$") for arm in arms]  # two $ would enclose a formula
    lines = sum(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(width * len(panels), height + 0.1 * lines), layout="constrained")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _draw_panel(axes, panel, arms)
    curves = [curve for panel in panels for curve in panel.curves]
    handles = [Line2D([], [], label=name, **_look(i)) for i, name in enumerate(names) if len(arms) > 1]
    if any(curve.converged is not None for curve in curves):
        handles.append(Line2D([], [], label="convergence step", **RING))
    if any(curve.phases for curve in curves):
        handles.append(Line2D([], [], label="a phase begins", **BAR))
    if handles:
        longest = max(len(line) for handle in handles for line in str(handle.get_label()).splitlines())
        room = (letters + 8) // (longest + 8) or 1
        figure.legend(handles=handles, loc="outside lower left", ncols=min(room, len(handles)), frameon=False)
    return figure


RING: dict[str, Any] = {"marker": "o", "ms": 10, "mfc": "none", "mec": INK, "mew": 1.2, "ls": ""}
BAR: dict[str, Any] = {"marker": "|", "ms": 18, "mec": INK, "mew": 1.6, "ls": ""}


def _look(arm: int) -> dict[str, Any]:
    return {
        "color": COLOURS[arm % len(COLOURS)],
        "linestyle": DASHES[arm // len(COLOURS) % len(DASHES)],
        "marker": MARKERS[arm % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.8,
    }


def _draw_panel(axes: Axes, panel: Panel, arms: list[str]) -> None:
    for i, arm in enumerate(arms):
        curves = [curve for curve in panel.curves if curve.arm == arm]
        several = len(curves) > 1
        look: dict[str, Any] = _look(i) | ({} if panel.markers else {"marker": ""})
        thin: dict[str, Any] = look | ({"linewidth": 0.7, "markersize": 2.5, "alpha": 0.7} if several else {})
        bold: dict[str, Any] = look | {"marker": "", "linewidth": 2.6}
        for curve in curves:
            axes.plot(curve.xs, curve.ys, **thin)
            if curve.converged is not None:
                axes.plot(curve.converged, np.interp(curve.converged, curve.xs, curve.ys), **RING)
            axes.plot(curve.phases, np.interp(curve.phases, curve.xs, curve.ys), **BAR)
        if several:
            axes.plot(*_mean(curves), **bold)
    if panel.level is not None:
        axes.axhline(panel.level, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    low, high = axes.get_xlim()
    if high - low < 1:  # a run without steps: matplotlib would make several marks of its one
        axes.set_xlim(low - 0.5, high + 0.5)
    axes.tick_params(length=3)


def _mean(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """The mean where all curves are defined; between their points they are interpolated, for seeds may differ there."""
    xs = np.unique(np.concatenate([curve.xs for curve in curves]))
    xs = xs[(xs >= max(curve.xs[0] for curve in curves)) & (xs <= min(curve.xs[-1] for curve in curves))]
    return xs, np.mean([np.interp(xs, curve.xs, curve.ys) for curve in curves], axis=0)
