"""Run every command in the documents' transcripts once, record the output, and write it into the documents.

    python benchmarks/transcripts.py              # make transcripts: run, record, write
    python benchmarks/transcripts.py --write      # only write the last recording into the documents

A transcript is a fenced block of the language `console`: a line that begins with `$ ` is a command, and the lines below it
are its output, with standard output and standard error interleaved. Commands run in the order of the documents, in one
folder and with a home directory of their own, and a command that occurs twice runs once. Commands that end with `&` run in
parallel with the next one, as on another machine. A line `...` stands for the rest of a long output; as many lines are
shown as stand above and below it. Tracebacks, warnings and logs of the launchers are replaced by one line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "transcripts.json"
NEEDED = ("recipes", "accelerate_configs", "cifar100_tk", "tests", "docs", "Makefile", "setup.cfg")
LIMIT_SECONDS = 1800
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
ELIDED = "...\n"
LAUNCHERS = re.compile(
    r"^(?:\n*(?:Traceback \(most recent call last\):\n(?:[ \t].*\n)+\S.*\n"  # tracebacks of accelerate launch and torchrun,
    r"|=+\n.* FAILED\n(?:.*\n)*?=+\n"  # torchrun's table of failed processes,
    r"|[EWI]\d{4} .*\n|\[[EWI]\d{4}.*\n"  # logs of torch,
    r"|Exception raised from .*\n|frame #.*\n|<omitting .*\n"
    r"|/.*: \w*Warning: .*\n(?: .*\n)?))+\n*",  # and warnings.
    re.MULTILINE,
)
LEFT_OUT = "[what the launcher adds]\n"


def documents() -> list[Path]:
    """Return the documents with transcripts, in the order in which their commands run."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [path for path in found if BLOCK.search(path.read_text())]


def commands(text: str) -> list[str]:
    """Return the commands of a document's transcripts.

    >>> commands("```console\\n$ one &\\n$ two\\nhello\\n```\\n")
    ['one &', 'two']
    """
    return [command for block in BLOCK.findall(text) for command, _ in ENTRY.findall(block)]


def written(text: str, outputs: dict[str, str]) -> str:
    """Return a document with the recorded output below each of its commands.

    >>> written("```console\\n$ count\\n1\\n...\\n9\\n```\\n", {"count": "a\\nb\\nc\\nd\\n"})
    '```console\\n$ count\\na\\n...\\nd\\n```\\n'
    """

    def entry(found: re.Match[str]) -> str:
        command, shown = found.groups()
        return f"$ {command}\n{elide(outputs[command], like=shown)}"

    return BLOCK.sub(lambda block: ENTRY.sub(entry, block[0]), text)


def elide(output: str, like: str) -> str:
    """Return the first and last lines of an output, as many as another shows around its line `...`, or else all of it."""
    lines = output.splitlines(keepends=True)
    above, found, below = like.partition(ELIDED) if like.startswith(ELIDED) else like.partition(f"\n{ELIDED}")
    if not found:
        return output
    num_above, num_below = len(above.splitlines()), len(below.splitlines())
    return "".join([*lines[:num_above], ELIDED, *lines[max(num_above, len(lines) - num_below) :]])


def run(every: list[str]) -> dict[str, str]:
    """Run each command once, in one scratch folder, and return its output."""
    outputs: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "home").mkdir()
        for part in NEEDED:
            (folder / part).symlink_to(ROOT / part)
        started: list[tuple[str, subprocess.Popen[str]]] = []
        for command in dict.fromkeys(every):
            print(f"$ {command}", flush=True)
            started.append((command, start(command, folder)))
            if not command.endswith("&"):
                outputs |= {command: tidy(end(process), folder) for command, process in started}
                print("".join(outputs[command] for command, _ in started), flush=True)
                started = []
    return outputs


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command in a folder that contains only links to the project."""
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    settings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HOME": str(folder / "home"),
        "OMP_WAIT_POLICY": "passive",  # Waiting threads do not spin, which costs a busy machine.
    }
    return subprocess.Popen(
        ["bash", "-c", command.removesuffix("&")],
        cwd=folder,
        env=kept | settings,
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


def tidy(output: str, folder: Path) -> str:
    """Return an output without launcher output and without paths of this machine."""
    for path, name in ((folder / "home", "~"), (f"{folder}/", ""), (folder, "."), (f"{ROOT}/", ""), (ROOT, ".")):
        output = output.replace(str(path), name)
    return LAUNCHERS.sub(LEFT_OUT, output)


def main() -> None:
    """Record the transcripts and update the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="only write the last recording into the documents")
    if not parser.parse_args().write:
        outputs = run([command for path in documents() for command in commands(path.read_text())])
        record = {"torch": torch.__version__, "cpus": os.cpu_count(), "outputs": outputs}
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    outputs = json.loads(RECORD.read_text())["outputs"]
    for path in documents():
        path.write_text(written(path.read_text(), outputs))


if __name__ == "__main__":
    main()
