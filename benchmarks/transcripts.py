"""Rerun every command in a document's transcripts and update its output.

    python benchmarks/transcripts.py docs/launching.md [--only WORD] [--at-once N]

A transcript is a fenced block of the language `console`: a line that begins with `$ ` is a command, the rest is its
output, with standard output and standard error interleaved. Commands that end with `&` run in parallel with the next one,
as on another machine. Tracebacks, warnings and logs of the launchers are replaced by one line.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 1800
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
LAUNCHERS = re.compile(
    r"^(?:Traceback \(most recent call last\):\n(?:[ \t].*\n)+\S.*\n"  # tracebacks of accelerate launch and torchrun,
    r"|=+\n.* FAILED\n(?:.*\n)*?=+\n"  # torchrun's table of failed processes,
    r"|[EWI]\d{4} .*\n|\[[EWI]\d{4}.*\n"  # logs of torch,
    r"|Exception raised from .*\n|frame #.*\n|<omitting .*\n"
    r"|/.*: \w*Warning: .*\n(?: .*\n)?|(?=\n)\n)+",  # and warnings.
    re.MULTILINE,
)
LEFT_OUT = "[what the launcher adds]\n"


def transcript(block: str, folder: Path) -> str:
    """Return a block after rerunning its commands in a folder."""
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    started: list[tuple[str, subprocess.Popen[str]]] = []
    said = ""
    for command in commands:
        started.append((command, start(command, folder)))
        if not command.endswith("&"):
            said += "".join(f"{line}\n{tidy(end(process), folder)}" for line, process in started)
            started = []
    return said


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command in a folder that contains only links to the project."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        ["bash", "-c", command.removeprefix("$ ").removesuffix("&")],
        cwd=folder,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    """Wait for a command to end and return its output."""
    try:
        return process.communicate(timeout=LIMIT_SECONDS)[0]
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)


def tidy(said: str, folder: Path) -> str:
    """Return the text without launcher output and without paths of this machine."""
    said = said.replace(f"{folder}/", "").replace(str(folder), ".").replace(str(Path.home()), "~")
    return LAUNCHERS.sub(lambda found: LEFT_OUT if found.group().strip() else "", said)


def main() -> None:
    """Update a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("--only", default="", help="rerun only transcripts that contain this word")
    parser.add_argument("--at-once", type=int, default=1, help="number of transcripts to run in parallel")
    options = parser.parse_args()
    text = options.document.read_text()
    with tempfile.TemporaryDirectory() as name:
        for part in ("recipes", "accelerate_configs", "cifar100_tk", "tests", "Makefile", "setup.cfg"):
            (Path(name) / part).symlink_to(ROOT / part)
        blocks = [block for block in BLOCK.findall(text) if options.only in block]
        with ThreadPoolExecutor(options.at_once) as pool:
            made = dict(zip(blocks, pool.map(lambda block: transcript(block, Path(name)), blocks), strict=True))
    text = BLOCK.sub(lambda block: made.get(block[0], block[0]), text)
    options.document.write_text(text)


if __name__ == "__main__":
    main()
