"""Plots of a report, drawn once in print colours and once in colours that the web page sets."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Literal, final

import matplotlib
import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

NUM_COLOURS: Final = 8
ROUND: Final = [1, 2, 5, 10]
"""Tick steps: these multiples of a power of ten."""
FEW_POINTS: Final = 12
"""Curves with at most this many points get markers, so that a single epoch is visible."""


@final
@dataclass(frozen=True)
class Palette:
    """The colours of a plot."""

    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]
    surface: str = "none"


PRINTED: Final = Palette(
    ink="#1b1f24",
    muted="#5a626c",
    grid="#d9dde2",
    series=("#1f6fd0", "#d4500c", "#0b7a4b", "#8a3ffc", "#b5179e", "#7a5c00", "#0f7c8a", "#c92a2a"),
    surface="#ffffff",
)
WEB: Final = Palette(
    ink="#010101",
    muted="#010102",
    grid="#010103",
    series=tuple(f"#0102{number:02x}" for number in range(NUM_COLOURS)),
)
"""Placeholder colours; `svg` replaces them with CSS variables, which differ in dark mode."""
VARIABLES: Final = {WEB.ink: "--ink", WEB.muted: "--muted", WEB.grid: "--grid"} | {
    colour: f"--series-{number}" for number, colour in enumerate(WEB.series)
}


@final
@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    x: Numbers
    y: Numbers
    """Same length as x; non-finite points are dropped."""
    colour: int
    """Index into the palette; -1 for the muted colour."""
    style: Literal["-", "--", ":"] = "-"
    label: str | None = None
    """Legend entry; None for no entry."""
    faint: bool = False
    """True for a thin, pale line."""
    markers: bool | None = None
    """True to mark its points; None to mark them if they are few."""


@final
@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    """The name of y."""
    against: str
    """The name of x."""
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_range: tuple[float, float]
    """The ends of the x-axis, which plots of one row share."""
    y_range: tuple[float | None, float | None] = (None, None)
    """The ends of the y-axis; None for that of the lines."""


def plot(panel: Panel, palette: Palette) -> Figure:
    """Draw one plot, sized for a phone screen. The axes have the same place in every plot, so that stacked ones align."""
    with _style(palette):
        figure = Figure(figsize=(3.9, 2.9))
        figure.subplots_adjust(left=0.19, right=0.97, bottom=0.16, top=0.89)
        _draw(figure.add_subplot(), panel, palette)
        return figure


def row(panels: Sequence[Panel], legend: Sequence[tuple[str, int]], palette: Palette) -> Figure:
    """Draw plots side by side, with a shared legend below them."""
    with _style(palette):
        size = (3.9 * len(panels), 3.0 + 0.25 * -(-len(legend) // 3))
        figure = Figure(figsize=size, layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
            _draw(axes, panel, palette)
        if legend:
            handles = [
                matplotlib.lines.Line2D([], [], color=palette.series[colour % NUM_COLOURS]) for _, colour in legend
            ]
            names = [shortened(name, 40) for name, _ in legend]
            figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        return figure


def web(panel: Panel, name: str) -> dict[str, Markup | str]:
    """Return the caption of a plot and its <svg> element for the page. name: prefix of its ids, unique in the page."""
    return {"title": panel.title, "svg": svg(plot(panel, WEB), name, f"{panel.title} against {panel.against}")}


def svg(figure: Figure, name: str, about: str) -> Markup:
    """Return a plot drawn with WEB as an <svg> element to embed in a page.

    name: prefix of its ids, unique in the page. about: text alternative for screen readers.
    """
    buffer = io.StringIO()
    with matplotlib.style.context("default"), matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box, head
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\1{name}-", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"\n\s*", "\n", body)
    attributes = (
        f'{box.group()} xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{html.escape(about)}"'
    )
    return Markup(f"<svg {attributes}>{body}")


def png(figure: Figure) -> bytes:
    """Return a plot drawn with PRINTED as a PNG at twice its size, for high-density displays."""
    buffer = io.BytesIO()
    with matplotlib.style.context("default"):
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def shortened(text: str, most: int) -> str:
    """Return the text, truncated with an ellipsis to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _style(palette: Palette) -> AbstractContextManager[None]:
    """Use matplotlib's defaults in these colours, regardless of the user's settings."""
    style = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), palette.ink),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), palette.muted),
        **{"figure.facecolor": palette.surface, "axes.facecolor": "none", "grid.color": palette.grid},
        **{"axes.spines.top": False, "axes.spines.right": False, "grid.linewidth": 0.7, "font.size": 9},
        **{"lines.linewidth": 1.6, "lines.markersize": 3.5, "text.parse_math": False, "axes.axisbelow": True},
    }
    return matplotlib.style.context(["default", style])


def _draw(axes: Axes, panel: Panel, palette: Palette) -> None:
    width = 1.6 if len(panel.lines) <= 6 else 1.1
    for line in panel.lines:
        here = np.isfinite(line.x) & np.isfinite(line.y)
        marked = here.sum() <= FEW_POINTS if line.markers is None else line.markers
        axes.plot(
            line.x[here],
            line.y[here],
            linestyle=line.style,
            linewidth=0.8 if line.faint else width,
            marker="o" if marked else "",
            alpha=0.5 if line.faint else 1.0,
            color=palette.muted if line.colour < 0 else palette.series[line.colour % NUM_COLOURS],
            label=line.label,
        )
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, ylim=panel.y_range)
    low, high = panel.x_range
    axes.set_xlim(low - 0.01 * (high - low), high + 0.02 * (high - low))
    axes.grid(True)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=panel.x_label == "epoch", min_n_ticks=1, steps=ROUND))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if any(line.label for line in panel.lines):
        # A label shared by several lines describes their style, not their colour.
        _legend(axes, None if all(line.label or line.faint for line in panel.lines) else palette.muted)


def _legend(axes: Axes, colour: str | None = None) -> None:
    """Put the legend above the plot, clear of the curves. colour: of its lines; None keeps their own."""
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.07, 1.0),
        ncols=3,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    if colour is not None:
        for line in legend.get_lines():
            line.set_color(colour)
