"""Record commands in a terminal and draw them as an animated SVG: the recording in the README.

    python benchmarks/recording.py                       # make recording: run, record, draw docs/quickstart.svg
    python benchmarks/recording.py --cast quickstart.cast           # the same, and keep what was recorded
    python benchmarks/recording.py --cast quickstart.cast --redraw  # only draw an earlier recording

The commands run one after another in a new folder, with a home directory of their own, in a pseudo-terminal. A recording is an
asciicast (version 2), which `asciinema play` shows at the original speed. In the drawing all output is faster by one factor,
which its title states; commands are typed at the speed of a person. Readers who prefer reduced motion see the last frame.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import html
import itertools
import json
import math
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyte

from cifar100_tk.progress import duration

ROOT: Final = Path(__file__).resolve().parent.parent
DRAWING: Final = ROOT / "docs" / "quickstart.svg"
COMMANDS: Final = ("cifar100-tk train quickstart", "cifar100-tk eval runs/quickstart")
COLUMNS, ROWS = 104, 26
SECONDS: Final = 20.0
"""Length of the drawing, without the time for which the last frame stays."""
TYPING, READING, LAST = 1.2, 1.0, 5.0
"""Seconds for which a command is typed, its last output stays, and the last frame of all stays."""
FRAMES_PER_SECOND: Final = 8

SIZE, ADVANCE, LEADING, PADDING, BAR = 14, 8.4, 20, 14, 34
"""Font size, width of a character, height of a line, margin, and height of the title bar in pixels."""
COLOURS: Final = {
    "default": "#d6dae0",
    "green": "#7ee787",
    "brown": "#f2cc60",
    "brightblack": "#8b949e",
    "prompt": "#79c0ff",
}
"""Colours by pyte's names; its brown is yellow."""
PROMPT: Final = "$ "

Line = tuple[tuple[int, str, str, bool], ...]
"""Pieces of one line: column, text, colour, and True for bold."""
Frame = tuple[float, int, dict[int, Line]]
"""Time in seconds, number of lines that have left the screen at the top, and the lines on it by number from the beginning."""


@dataclass
class Session:
    """A command, and the time in seconds since its start at which each part of its output came."""

    command: str
    output: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0


def record(command: str, folder: Path) -> Session:
    """Run a command in a pseudo-terminal, and show it at the same time. Raises SystemExit if it fails."""
    session, (ours, theirs) = Session(command), pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    settings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder.parent / "home"),
        "TERM": "xterm-256color",
        "COLUMNS": str(COLUMNS),
        "OMP_WAIT_POLICY": "passive",  # Waiting threads do not spin, which costs a busy machine.
    }
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    start, pending = time.monotonic(), b""
    process = subprocess.Popen(
        command, shell=True, cwd=folder, env=kept | settings, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    with contextlib.suppress(OSError):  # On Linux, the end of the output.
        while part := os.read(ours, 65536):
            pending += part
            with contextlib.suppress(UnicodeDecodeError):  # A character came in two parts.
                text = pending.decode().replace(settings["HOME"], "~")
                session.output.append((time.monotonic() - start, text))
                pending = b""
                print(text, end="", flush=True)
    os.close(ours)
    if process.wait() != 0:
        sys.exit(f"{command} ended with exit code {process.returncode}; nothing was drawn.")
    session.seconds = time.monotonic() - start
    return session


def save(sessions: list[Session], path: Path) -> None:
    """Write an asciicast: a header, then a line for each part of the output."""
    header = {"version": 2, "width": COLUMNS, "height": ROWS}
    lines, start = [json.dumps(header)], 0.0
    for session in sessions:
        lines.append(json.dumps([start, "m", session.command]))
        lines.append(json.dumps([start, "o", f"{PROMPT}{session.command}\r\n"]))
        lines += [json.dumps([round(start + at, 4), "o", text]) for at, text in session.output]
        start += session.seconds
    lines.append(json.dumps([start, "m", ""]))
    path.write_text("\n".join(lines) + "\n")


def load(path: Path) -> list[Session]:
    """Read what `save` wrote."""
    sessions: list[Session] = []
    start = 0.0
    for at, kind, text in map(json.loads, path.read_text().splitlines()[1:]):
        if kind == "m":
            if sessions:
                sessions[-1].seconds = at - start
            start = at
            if text:
                sessions.append(Session(text))
        elif not (at == start and text.startswith(PROMPT)):
            sessions[-1].output.append((at - start, text))
    return sessions


class Screen(pyte.Screen):
    """A terminal that counts the lines that have left it at the top."""

    scrolled = 0

    def index(self) -> None:
        self.scrolled += self.cursor.y == self.lines - 1
        super().index()

    def shown(self) -> dict[int, Line]:
        """Return the lines that are not empty, by their number since the beginning."""
        rows = {self.scrolled + row: _pieces(self.buffer[row], self.columns) for row in range(self.lines)}
        return {number: line for number, line in rows.items() if line}


def _pieces(row: pyte.screens.StaticDefaultDict[int, pyte.screens.Char], columns: int) -> Line:
    pieces: list[tuple[int, str, str, bool]] = []
    column = 0
    for (colour, bold), cells in itertools.groupby((row[k] for k in range(columns)), lambda c: (c.fg, c.bold)):
        text = "".join(cell.data for cell in cells)
        if text.strip():
            indent = len(text) - len(text.lstrip())
            pieces.append((column + indent, text.strip(), colour, bold))
        column += len(text)
    return tuple(pieces)


def frames(sessions: list[Session]) -> tuple[list[Frame], float]:
    """Return the frames that differ from the one before, and the time in seconds at which the last output has been read."""
    screen = Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    faster = sum(each.seconds for each in sessions) / (SECONDS - len(sessions) * (TYPING + READING))
    now = 0.0
    found: list[Frame] = []

    def keep(at: float) -> None:
        shown = (screen.scrolled, screen.shown())
        if not found or found[-1][1:] != shown:
            found.append((at, *shown))

    for session in sessions:
        stream.feed(f"\x1b[1m{PROMPT}")
        for count, letter in enumerate(session.command):
            stream.feed(letter)
            keep(now + TYPING * count / len(session.command))
        stream.feed("\x1b[0m\r\n")
        now += TYPING
        output = iter([*session.output, (session.seconds, "")])
        at, text = next(output)
        for frame in range(int(session.seconds / faster * FRAMES_PER_SECOND) + 2):
            shown_at = min(frame / FRAMES_PER_SECOND, session.seconds / faster)
            while text and at / faster <= shown_at:
                stream.feed(text.replace("\x1b[2m", "\x1b[90m"))  # pyte knows no dim text.
                at, text = next(output)
            keep(now + shown_at)
        now += session.seconds / faster + READING
    return found, now


def draw(sessions: list[Session]) -> str:
    """Return the recording as SVG. Each group of texts is visible from one frame to another; scrolling moves all of them."""
    shown, length = frames(sessions)
    whole = length + LAST
    styles, groups = [], []
    for number, ((start, end), lines) in enumerate(sorted(spans(shown).items())):
        changes = {0.0: "hidden", start: "visible"} | ({end: "hidden"} if end < whole else {})
        styles.append(_keyframes(f"f{number}", whole, {at: f"visibility:{value}" for at, value in changes.items()}))
        last = ";visibility:hidden" if end < whole else ""
        groups.append(f'<g style="animation-name:f{number}{last}">{"".join(_text(*each) for each in lines)}</g>')
    moves = {}
    for scrolled, same in itertools.groupby(shown, key=lambda frame: frame[1]):
        moves[next(same)[0]] = f"transform:translateY({-LEADING * scrolled}px)"
    styles.append(_keyframes("scroll", whole, moves))
    real = duration(sum(session.seconds for session in sessions))
    title = f"{real}, shown in {length:.0f} s"
    label = f"Terminal: {' and '.join(session.command for session in sessions)}; {title}"
    return SVG.format(
        width=round(COLUMNS * ADVANCE + 2 * PADDING),
        height=BAR + ROWS * LEADING + PADDING,
        screen=ROWS * LEADING,
        bar=BAR,
        size=SIZE,
        whole=f"{whole:.1f}",
        styles="".join(styles),
        groups="\n".join(groups),
        last=moves[max(moves)],
        title=html.escape(title),
        label=html.escape(label),
        default=COLOURS["default"],
        colours="".join(f".{name}{{fill:{colour}}}" for name, colour in COLOURS.items() if name != "default"),
    )


def spans(shown: list[Frame]) -> dict[tuple[float, float], list[tuple[int, Line]]]:
    """Return the lines with their numbers by the time from which and to which they are visible; inf: to the end.

    Lines that have left the screen at the top count as visible, since scrolling moves them out of sight.
    """
    found: dict[tuple[float, float], list[tuple[int, Line]]] = {}
    since: dict[int, tuple[float, Line]] = {}
    for at, scrolled, lines in shown:
        for number, (start, line) in list(since.items()):
            if number >= scrolled and lines.get(number) != line:
                found.setdefault((start, at), []).append((number, line))
                del since[number]
        since |= {number: (at, line) for number, line in lines.items() if number not in since}
    for number, (start, line) in since.items():
        found.setdefault((start, math.inf), []).append((number, line))
    return found


SVG: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" \
xml:space="preserve" role="img" aria-label="{label}">
<style>
text{{font:{size}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:{default};white-space:pre}}
.b{{font-weight:bold}}{colours}
g{{animation:{whole}s step-end infinite}}
{styles}
@media (prefers-reduced-motion:reduce){{g{{animation:none!important}}}}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>
<circle cx="20" cy="17" r="6" fill="#ff5f57"/>
<circle cx="40" cy="17" r="6" fill="#febc2e"/>
<circle cx="60" cy="17" r="6" fill="#28c840"/>
<text x="50%" y="22" text-anchor="middle" class="brightblack">{title}</text>
<svg y="{bar}" width="{width}" height="{screen}">
<g style="animation-name:scroll;{last}">
{groups}
</g>
</svg>
</svg>
"""


def _keyframes(name: str, whole: float, changes: dict[float, str]) -> str:
    steps = "".join(f"{100 * at / whole:.2f}%{{{value}}}" for at, value in changes.items())
    return f"@keyframes {name}{{{steps}}}\n"


def _text(number: int, line: Line) -> str:
    """Return the texts of a line; each states its width, since fonts differ."""
    texts = []
    for column, text, colour, bold in line:
        names = [colour] * (colour in COLOURS and colour != "default") + ["b"] * bold
        classes = f' class="{" ".join(names)}"' if names else ""
        place = f'x="{PADDING + column * ADVANCE:.1f}" y="{(number + 1) * LEADING - 5}"'
        texts.append(f'<text {place} textLength="{len(text) * ADVANCE:.1f}"{classes}>{html.escape(text)}</text>')
    return "".join(texts)


def main() -> None:
    """Record the commands and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cast", type=Path, help="file for the recording")
    parser.add_argument("--redraw", action="store_true", help="only draw the recording in --cast")
    parser.add_argument("--to", type=Path, default=DRAWING, help="file for the drawing (default: %(default)s)")
    options = parser.parse_args()
    if options.redraw:
        if options.cast is None:
            parser.error("--redraw needs --cast, the recording to draw")
        sessions = load(options.cast)
    else:
        if shutil.which("cifar100-tk") is None:
            parser.error('there is no command cifar100-tk; run pip install -e ".[dev]" first')
        with tempfile.TemporaryDirectory() as name:
            for part in ("home", "work"):
                (Path(name) / part).mkdir()
            sessions = [record(command, Path(name) / "work") for command in COMMANDS]
        if options.cast is not None:
            save(sessions, options.cast)
    options.to.write_text(draw(sessions))
    print(f"{options.to}: {options.to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
