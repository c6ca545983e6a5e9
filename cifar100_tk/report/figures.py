"""The plots of a report, drawn once in the colours of a printed page and once in those that a web page sets."""

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
"""The colours of the confusion matrix; with their transparency they suit a light ground and a dark one."""
NUM_COLOURS: Final = 8
ROUND: Final = [1, 2, 5, 10]
"""What ticks are multiples of, tens apart."""
FEW_POINTS: Final = 12
"""Curves of no more points than this show them as dots, so that one epoch is seen at all."""


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
"""Colours that no plot has; `svg` replaces them by variables of the page, which are others in the dark."""
VARIABLES: Final = {WEB.ink: "--ink", WEB.muted: "--muted", WEB.grid: "--grid"} | {
    colour: f"--series-{number}" for number, colour in enumerate(WEB.series)
}


@final
@dataclass(frozen=True)
class Line:
    """One line of a plot of curves."""

    x: Numbers
    y: Numbers
    """As long as x; what is not a number is left out."""
    colour: int
    """The number of its colour."""
    style: str = "-"
    label: str | None = None
    """What the legend of the plot calls it; None for nothing."""


@final
@dataclass(frozen=True)
class Panel:
    """One plot of curves."""

    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    whole_x: bool = False
    """Whether x counts something, so that its ticks are whole numbers."""


@final
@dataclass(frozen=True)
class Bins:
    """Images sorted by the probability of the first guess into bins of equal width from 0 to 1."""

    shares: Numbers
    """(B,): the part of all images in each bin."""
    confidence: Numbers
    """(B,): the mean probability in each bin; NaN in an empty one."""
    accuracy: Numbers
    """(B,): how many of them are right, a fraction; NaN in an empty one."""


def curves(panel: Panel, palette: Palette) -> Figure:
    """Draw one plot of curves at the size of a phone's width."""
    with _style(palette):
        figure = Figure(figsize=(3.9, 2.9), layout="constrained")
        _draw(figure.add_subplot(), panel, palette)
        return figure


def all_curves(panels: Sequence[Panel], legend: Sequence[tuple[str, int]], palette: Palette) -> Figure:
    """Draw plots of curves in rows of three, with one legend of names and colours below them."""
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
    """Draw how often guesses are right against how sure they were, and how many images that is of."""
    named = [("as it is", before, 0, "o-")] + ([("scaled", after, 1, "s--")] if after else [])
    edges = np.linspace(0, 1, len(before.shares) + 1)
    with _style(palette):
        figure = Figure(figsize=(3.9, 4.3), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=palette.muted, linewidth=1, linestyle=":", label="perfect")
        for label, bins, colour, style in named:
            full = np.flatnonzero(np.isfinite(bins.accuracy))
            upper.plot(bins.confidence[full], bins.accuracy[full], style, color=palette.series[colour], label=label)
            lower.stairs(bins.shares, edges, color=palette.series[colour], linestyle=style[1:], linewidth=1.4)
        upper.set(ylabel="right", ylim=(-0.03, 1.03), xlim=(0, 1))
        lower.set(xlabel="probability of the guess", ylabel="images")
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

    shares: (C, C), the part of the row's class that was taken for the column's, classes of a super-class side by side.
    blocks: the name and the number of classes of each super-class. named: whether there is room for their names;
    otherwise they are numbered from 1.
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
        axes.set(xlabel="taken for", ylabel="is")
        for spine in axes.spines.values():
            spine.set(visible=True, color=palette.grid)
        for colour, label, top, place in ((RIGHT, "right", 1.0, 0.0), (WRONG, "mistaken", worst, 0.55)):
            _colour_key(axes, colour, label, top, place)
        return figure


def svg(figure: Figure, name: str, about: str) -> Markup:
    """Return a plot drawn in WEB as an <svg> element to put into a page.

    name: set before its ids, unique in the page. about: what it shows, for who does not see it.
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
    """Return a plot drawn in PRINTED as a PNG of twice its size, for sharp displays."""
    buffer = io.BytesIO()
    with matplotlib.style.context("default"):
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def spaced(name: str) -> str:
    """Return a class name for people: `maple_tree` is `maple tree`."""
    return name.replace("_", " ")


def shortened(text: str, most: int) -> str:
    """Return the text, cut with an ellipsis where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _style(palette: Palette) -> AbstractContextManager[None]:
    """Draw as matplotlib is delivered, whatever the user's settings are, but in these colours."""
    ours = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), palette.ink),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), palette.muted),
        **{"figure.facecolor": palette.surface, "axes.facecolor": "none", "grid.color": palette.grid},
        **{"axes.spines.top": False, "axes.spines.right": False, "grid.linewidth": 0.7, "font.size": 9},
        **{"lines.linewidth": 1.6, "lines.markersize": 3.5, "text.parse_math": False, "axes.axisbelow": True},
    }
    return matplotlib.style.context(["default", ours])


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
        # A name that several lines share is that of their style, whatever their colour.
        _legend(axes, None if all(line.label for line in panel.lines) else palette.muted)


def _legend(axes: Axes, colour: str | None = None) -> None:
    """Put the legend above the plot, where no curve is. colour: that of its lines; None for their own."""
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
    """Return (C, C, 4): hits and mistakes in their colours, the rarer the more transparent, nothing where there is none."""
    hits = np.eye(len(shares), dtype=bool)
    image = np.empty((*shares.shape, 4))
    image[..., :3] = np.where(hits[..., None], to_rgb(RIGHT), to_rgb(WRONG))
    # The root shows what is rare; the floor shows that it is there.
    image[..., 3] = np.where(hits, shares, _strength(wrong))
    return np.nan_to_num(image)


def _strength(part: Numbers) -> Numbers:
    strength: Numbers = np.where(part > 0, 0.12 + 0.88 * np.sqrt(part), 0.0)
    return strength


def _colour_key(axes: Axes, colour: str, label: str, top: float, place: float) -> None:
    """Draw what a colour's strength means above the matrix. place: its left border as a part of the width."""
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
