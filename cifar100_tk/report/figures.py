"""Plots of a report, drawn once in print colours and once in colours that the web page sets."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, final

import matplotlib
import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

RIGHT: Final = "#2f7de1"
WRONG: Final = "#f0701e"
"""The colours of the confusion matrix; their transparency suits light and dark backgrounds."""
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
    """One line of a plot of curves."""

    x: Numbers
    y: Numbers
    """Same length as x; non-finite points are dropped."""
    colour: int
    """Index into the palette."""
    style: str = "-"
    label: str | None = None
    """Legend entry; None for no entry."""


@final
@dataclass(frozen=True)
class Panel:
    """One plot of curves."""

    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    whole_x: bool = False
    """True if x is a count, so that its ticks are integers."""


@final
@dataclass(frozen=True)
class Bins:
    """Images binned by the confidence of the prediction, in bins of equal width from 0 to 1."""

    shares: Numbers
    """(B,): fraction of all images in each bin."""
    confidence: Numbers
    """(B,): mean confidence in each bin; NaN if the bin is empty."""
    accuracy: Numbers
    """(B,): fraction of correct predictions in each bin; NaN if the bin is empty."""


def curves(panel: Panel, palette: Palette) -> Figure:
    """Draw one plot of curves, sized for a phone screen."""
    with _style(palette):
        figure = Figure(figsize=(3.9, 2.9), layout="constrained")
        _draw(figure.add_subplot(), panel, palette)
        return figure


def all_curves(panels: Sequence[Panel], legend: Sequence[tuple[str, int]], palette: Palette) -> Figure:
    """Draw plots of curves in rows of three, with a shared legend below them."""
    rows = -(-len(panels) // 3)
    height = 3.0 * rows + 0.25 * -(-len(legend) // 3)
    with _style(palette):
        figure = Figure(figsize=(11.7, height), layout="constrained")
        for axes, panel in zip(figure.subplots(rows, 3, squeeze=False).flat, panels, strict=False):
            _draw(axes, panel, palette)
        for axes in figure.axes[len(panels) :]:
            axes.remove()
        if legend:
            handles = [
                matplotlib.lines.Line2D([], [], color=palette.series[colour % NUM_COLOURS]) for _, colour in legend
            ]
            names = [shortened(name, 40) for name, _ in legend]
            figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        return figure


def reliability(before: Bins, after: Bins | None, palette: Palette) -> Figure:
    """Draw accuracy against confidence, with the number of images per bin below."""
    named = [("uncalibrated", before, 0, "o-")] + ([("scaled", after, 1, "s--")] if after else [])
    edges = np.linspace(0, 1, len(before.shares) + 1)
    with _style(palette):
        figure = Figure(figsize=(3.9, 4.3), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=palette.muted, linewidth=1, linestyle=":", label="perfect")
        for label, bins, colour, style in named:
            full = np.flatnonzero(np.isfinite(bins.accuracy))
            upper.plot(bins.confidence[full], bins.accuracy[full], style, color=palette.series[colour], label=label)
            lower.stairs(bins.shares, edges, color=palette.series[colour], linestyle=style[1:], linewidth=1.4)
        upper.set(ylabel="accuracy", ylim=(-0.03, 1.03), xlim=(0, 1))
        lower.set(xlabel="confidence", ylabel="images")
        lower.set_ylim(bottom=0)
        _legend(upper)
        for axes in (upper, lower):
            axes.grid(True)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        lower.yaxis.set_major_locator(MaxNLocator(2))
        lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        figure.align_ylabels()
        return figure


def confusion(shares: Numbers, blocks: Sequence[tuple[str, int]], palette: Palette, *, named: bool) -> Figure:
    """Draw a confusion matrix.

    shares: (C, C), the fraction of the row's class that was predicted as the column's, grouped by super-class.
    blocks: name and number of classes of each super-class. named: label the super-classes by name; otherwise they are
    numbered from 1.
    """
    classes = len(shares)
    wrong = shares * (1 - np.eye(classes))
    worst = float(wrong.max()) or 1.0
    ends = np.cumsum([size for _, size in blocks])
    labels = [shortened(spaced(name), 34) if named else str(place) for place, (name, _) in enumerate(blocks, start=1)]
    with _style(palette):
        figure = Figure(figsize=(9.0, 9.3) if named else (3.9, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(_colours(shares, wrong / worst), interpolation="none")
        start = 0
        for end in ends:
            corner, size = (start - 0.5, start - 0.5), end - start
            axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=palette.muted, linewidth=0.6))
            start = int(end)
        middles = ends - np.array([size for _, size in blocks]) / 2 - 0.5
        axes.set_xticks(middles, labels, rotation=90 if named else 0)
        axes.set_yticks(middles, labels)
        axes.tick_params(length=0, labelsize=9 if named else 6.5)
        axes.set(xlabel="predicted", ylabel="true")
        for spine in axes.spines.values():
            spine.set(visible=True, color=palette.grid)
        for colour, label, top, place in ((RIGHT, "right", 1.0, 0.0), (WRONG, "mistaken", worst, 0.55)):
            _colour_key(axes, colour, label, top, place)
        return figure


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


def spaced(name: str) -> str:
    """Return a class name for display: `maple_tree` becomes `maple tree`."""
    return name.replace("_", " ")


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
    width = 1.6 if len(panel.lines) <= 4 else 1.1
    for line in panel.lines:
        here = np.isfinite(line.x) & np.isfinite(line.y)
        marker = "o" if here.sum() <= FEW_POINTS else ""
        axes.plot(
            line.x[here],
            line.y[here],
            linestyle=line.style,
            linewidth=width,
            marker=marker,
            color=palette.series[line.colour % NUM_COLOURS],
            label=line.label,
        )
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    axes.grid(True)
    if not panel.whole_x:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=panel.whole_x, min_n_ticks=1, steps=ROUND))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if any(line.label for line in panel.lines):
        # A label shared by several lines describes their style, not their colour.
        _legend(axes, None if all(line.label for line in panel.lines) else palette.muted)


def _legend(axes: Axes, colour: str | None = None) -> None:
    """Put the legend above the plot, clear of the curves. colour: of its lines; None keeps their own."""
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=3,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    if colour is not None:
        for line in legend.get_lines():
            line.set_color(colour)


def _colours(shares: Numbers, wrong: Numbers) -> Numbers:
    """Return (C, C, 4) RGBA: hits and mistakes in their colours, more transparent the rarer they are."""
    hits = np.eye(len(shares), dtype=bool)
    image = np.empty((*shares.shape, 4))
    image[..., :3] = np.where(hits[..., None], to_rgb(RIGHT), to_rgb(WRONG))
    # The square root makes rare mistakes visible; the floor separates them from none.
    image[..., 3] = np.where(hits, shares, _strength(wrong))
    return np.nan_to_num(image)


def _strength(part: Numbers) -> Numbers:
    strength: Numbers = np.where(part > 0, 0.12 + 0.88 * np.sqrt(part), 0.0)
    return strength


def _colour_key(axes: Axes, colour: str, label: str, top: float, place: float) -> None:
    """Draw the colour scale above the matrix. place: its left edge as a fraction of the width."""
    key = axes.inset_axes((place, 1.03, 0.45, 0.018))
    steps = np.linspace(0, 1, 64)
    image = np.empty((1, 64, 4))
    image[..., :3] = to_rgb(colour)
    image[..., 3] = steps if colour == RIGHT else _strength(steps)
    key.imshow(image, aspect="auto", extent=(0, 100 * top, 0, 1))
    key.set_yticks([])
    key.set_xticks([0, 100 * top], ["0", f"{100 * top:.3g} % {label}"])
    key.tick_params(length=0, labelsize=8, top=True, labeltop=True, bottom=False, labelbottom=False, pad=1)
    key.get_xticklabels()[0].set_horizontalalignment("left")
    key.get_xticklabels()[1].set_horizontalalignment("right")
    for spine in key.spines.values():
        spine.set_visible(False)
