"""Measure a GPU machine in phases of a few minutes: its limits, the training step in four variants, a whole run.

    python benchmarks/gpu.py check
    python benchmarks/gpu.py step [--batch-sizes 2048 512 256 1024]
    python benchmarks/gpu.py train [--recipe recipes/resnet50.py] [--data.source PATH --data.holdout 5000 ...]

Arguments that are not listed below go to the recipe. Each phase ends within --minutes; the same command again resumes it,
and measures nothing twice on the same machine with the same code. Every figure is written the moment it is known, a line of
JSON each, to OUTPUT/gpu-CARD.jsonl, and OUTPUT/gpu-CARD.md shows them. Exit codes: 0 all done; 75 time is up, the same
command resumes; 1 something failed, and the table says what.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import datetime
import functools
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
WAYS = ("plain", "channels_last", "compiled", "program")
RESUMABLE, LOCKED = 75, 7
"""Exit codes of a run stopped by a signal, and of one whose folder is locked by another process."""
STEP_BYTES = {"plain": 145e6, "channels_last": 145e6, "compiled": 116e6, "program": 116e6}
"""Device memory traffic of an image's training step of ResNet-50 in 16 bits, worked out: each convolution's, BatchNorm's and
activation's inputs and outputs, forward and backward. Eager kernels read and write a map for each operation, Inductor fuses."""
STEP_BYTES_MODEL = "resnet50_cifar"
TIME_IS_UP = "time was up"


class Ended(NamedTuple):
    """Result of a process."""

    code: int
    output: str
    late: bool
    """True if it was stopped because time was up."""


class Results:
    """All rows of a card in the order of measurement; truncated lines of a killed process are skipped."""

    def __init__(self, folder: Path, conditions: Json) -> None:
        self.conditions = conditions
        card = re.sub(r"[^a-z0-9]+", "-", conditions["card"].lower().removeprefix("nvidia ")).strip("-")
        self.path = folder / f"gpu-{card}.jsonl"
        self.rows: list[Json] = []
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    self.rows.append(json.loads(line))
                except ValueError:
                    continue

    def find(self, **key: Any) -> Json | None:
        """Return the newest matching row measured under the current conditions, or None."""
        wanted = {"conditions": self.conditions, **key}
        rows = (row for row in reversed(self.rows) if all(row.get(name) == value for name, value in wanted.items()))
        return next(rows, None)

    def is_done(self, **key: Any) -> bool:
        """Return True if a row exists that does not need to be measured again."""
        row = self.find(**key)
        return row is not None and ("error" not in row or bool(row.get("final")))

    def add(self, row: Json) -> Json:
        """Append a row immediately, and rewrite the Markdown of all rows."""
        now = datetime.datetime.now().isoformat(timespec="seconds")
        row = {**row, "date": now, "command": shlex.join(["python", *sys.argv]), "conditions": self.conditions}
        self.rows.append(row)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size > 0
        with self.path.open("a") as file:
            file.write("\n" * torn + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.path.with_suffix(".md").write_text(document(self.rows))
        return row


class Phase:
    """State shared by the phases: the clock, the rows, and child processes that end with it."""

    def __init__(self, options: argparse.Namespace, extra: list[str]) -> None:
        self.options, self.extra = options, extra
        self.budget: float = 60 * options.minutes
        self.deadline = time.monotonic() + self.budget
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        # At most a fifth of the time is reserved for a process to save its work and exit.
        self.grace = min(30.0, self.budget / 5)
        conditions = self.measure({"what": "conditions"})
        if "error" in conditions:
            sys.exit(f"gpu.py: cannot measure this machine: {conditions['error']}")
        self.on_gpu = conditions["driver"] is not None or "cuda" in conditions
        self.results = Results(options.output, conditions | {"code": _digest()})
        self.launch: dict[str, str] = {}
        if self.on_gpu:  # As `accelerate launch --mixed_precision` does.
            bf16 = float(conditions["capability"]) >= 8
            self.launch = {"ACCELERATE_MIXED_PRECISION": "bf16" if bf16 else "fp16"} | {
                name: value for name, value in os.environ.items() if name == "ACCELERATE_MIXED_PRECISION"
            }
        self.failed = self.unfinished = False

    @property
    def seconds_left(self) -> float:
        left: float = self.deadline - self.grace - time.monotonic()
        return left

    def run(self, command: list[str], *, shown: bool = False, environment: dict[str, str] | None = None) -> Ended:
        """Run a command until it ends or time is up; then send SIGTERM, and at the deadline SIGKILL."""
        with tempfile.TemporaryDirectory() as folder:
            log, place = Path(folder) / "log", 0
            with log.open("wb") as file:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=self.environment | (environment or {}),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_end_with_parent if sys.platform == "linux" else None,
                )
            try:
                while process.poll() is None and self.seconds_left > 0:
                    time.sleep(0.05)
                    place = _echo(log, place) if shown else 0
                late = process.poll() is None
            finally:
                _end(process, max(1.0, self.deadline - time.monotonic()))
            if shown:
                _echo(log, place)
            return Ended(process.returncode, log.read_text(errors="replace"), late)

    def measure(self, asked: Json, **environment: str) -> Json:
        """Measure in a separate process, which isolates memory, caches and crashes. Returns the figures, or an `error`."""
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            script = str(ROOT / "benchmarks" / "gpu_measure.py")
            started = time.monotonic()
            ended = self.run([sys.executable, script, json.dumps(asked), str(result)], environment=environment)
            if result.is_file():
                found: Json = json.loads(result.read_text())
                return found | ({"final": True} if "error" in found else {})
            if ended.late:
                # It had nearly all of the time, so it would not finish next time either.
                spent = time.monotonic() - started
                return {"error": f"{TIME_IS_UP} after {spent:.0f} s", "final": spent > 0.7 * self.budget}
            if re.search(r"ran out of memory|not even one \w+ a forward pass", ended.output):
                return {"error": "out of memory", "final": True}
            return {"error": _last_words(ended.output) or f"exit code {ended.code}"}

    def item(self, key: Json, work: Callable[[], Json], *, again: bool = False) -> Json | None:
        """Measure a row unless it exists, or always with `again`. Returns the row, or None if no time is left to start."""
        if not again and self.results.is_done(**key):
            return self.results.find(**key)
        if self.seconds_left < 0.02 * self.budget:
            self.unfinished = True
            return None
        print(f"{time.strftime('%H:%M:%S')}  {' '.join(str(value) for value in key.values() if value)} ...", flush=True)
        row = self.results.add(key | work())
        if error := row.get("error"):
            print(f"          {error}", flush=True)
            timed_out = error.startswith(TIME_IS_UP) and not row.get("final")
            self.unfinished |= timed_out
            self.failed |= not timed_out and error != "out of memory"
        return row

    def given(self, option: str) -> str | None:
        """Return the value of an option among the recipe's arguments, or None."""
        for place, argument in enumerate(self.extra):
            name, _, value = argument.partition("=")
            if name == option:
                return value or self.extra[place + 1 : place + 2][0]
        return None

    def short_run(self, batch_size: int, steps: int, epochs: int) -> list[str]:
        """Return the arguments for a few short epochs of a recipe, compiled on a GPU, on the given data or built-in images."""
        model, rows = self.options.model, max(1000, -(-steps * batch_size // 100) * 100)
        arguments = ["--batch-size", str(batch_size), "--epochs", str(epochs), "--limit-train-batches", str(steps)]
        arguments += ["--limit-eval-batches", "1", "--compile", "on" if self.on_gpu else "off"]
        arguments += ["--model.name", model] if model else []
        if self.given("--data.source") is None:
            arguments += ["--data.source", "shapes100", "--data.shapes100-rows", str(rows), "500"]
        return arguments + self.extra

    def ceilings(self) -> Json | None:
        """Measure the device's peak rates, once for all phases."""
        return self.item({"phase": "check", "what": "ceilings"}, lambda: self.measure({"what": "ceilings"}))

    def finish(self, sections: list[str]) -> NoReturn:
        """Print the short table last, and exit with the right code."""
        print("\n" + "\n\n".join(sections))
        print(f"\nrows in {self.results.path}, all figures in {self.results.path.with_suffix('.md')}")
        if self.unfinished:
            print("time is up; run the same command again to resume")
        sys.exit(1 if self.failed else RESUMABLE if self.unfinished else 0)


def check(phase: Phase) -> None:
    """Check the machine: peak rates, the doctor, a profile of a step, and the GPU tests."""
    options = phase.options
    phase.ceilings()
    with tempfile.TemporaryDirectory() as folder:
        phase.item({"phase": "check", "what": "doctor"}, lambda: _doctor(phase, folder))
    size = options.batch_sizes[0] if options.batch_sizes else (2048 if phase.on_gpu else 16)

    def profile() -> Json:
        with tempfile.TemporaryDirectory() as folder:
            run = {"arguments": phase.short_run(size, 16, epochs=2), "output_dir": f"{folder}/run"}
            return phase.measure({"what": "profile", "recipe": str(options.recipe), **run}, **phase.launch)

    phase.item({"phase": "check", "what": "profile", "batch_size": size, "recipe": str(options.recipe)}, profile)
    for file in gpu_tests(ROOT / "tests"):
        phase.item({"phase": "check", "what": "tests", "file": file.name}, functools.partial(_tests, phase, file))
    phase.finish(check_table(latest(phase.results.rows, "check")))


def _doctor(phase: Phase, folder: str) -> Json:
    options = phase.options
    command = [sys.executable, "-m", "cifar100_tk.doctor", "--output-dir", folder, "--compile", "off"]
    command += ["--data.source", phase.given("--data.source") or "shapes100"]
    command += ["--model.name", options.model] if options.model else []
    command += ["--batch-size", str(options.batch_sizes[0])] if options.batch_sizes else []
    ended = phase.run(command, environment=phase.launch)
    figures = {"text": ended.output}
    if ended.late:
        return figures | {"error": TIME_IS_UP}
    if ended.code:
        return figures | {"error": f"exit code {ended.code}: {_last_words(ended.output)}", "final": True}
    return figures


def gpu_tests(folder: Path) -> list[Path]:
    """Return the test files that hold GPU tests."""
    marked = re.compile(r"^(@|pytestmark = .*)pytest\.mark\.gpu", re.MULTILINE)
    return [file for file in sorted(folder.rglob("test_*.py")) if marked.search(file.read_text())]


def missing(file: Path, seen: set[Path] | None = None) -> list[str]:
    """Return the missing packages among the imports of a test file and of the test modules it imports."""
    seen = set() if seen is None else seen
    seen.add(file)
    absent: set[str] = set()
    for statement in ast.parse(file.read_text()).body:
        names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
        names += [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
        for name in {name.partition(".")[0] for name in names}:
            # Test modules import each other by their bare names, wherever below tests/ they are.
            module = next((ROOT / "tests").rglob(f"{name}.py"), None) or file.parent / f"{name}.py"
            if module.is_file():
                absent |= set(missing(module, seen)) if module not in seen else set()
            elif name != "cifar100_tk" and importlib.util.find_spec(name) is None:
                absent.add(name)
    return sorted(absent)


def _tests(phase: Phase, file: Path) -> Json:
    if absent := sorted({*missing(file), *missing(ROOT / "tests" / "conftest.py")}):
        return {"skipped_for": absent}
    # Other package versions may emit warnings, and pytest may lack the plugins of setup.cfg; neither is a failure here.
    settings = ["-o", "addopts=", "-W", "default", "-p", "no:cacheprovider", "--tb=short", "-v", "-rfE", "--color=no"]
    ended = phase.run([sys.executable, "-m", "pytest", *settings, "-m", "gpu", str(file)])
    output = ended.output
    outcomes = re.findall(r"^(\S+::.*) (PASSED|FAILED|ERROR|SKIPPED)", output, re.MULTILINE)
    counts = {
        word: sum(outcome == word for _, outcome in outcomes) for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")
    }
    figures = {word.lower(): count for word, count in counts.items()}
    figures["failures"] = [name for name, outcome in outcomes if outcome in ("FAILED", "ERROR")]
    if ended.late:
        return figures | {"error": TIME_IS_UP, "text": output[-2000:]}
    if ended.code:
        failures = [name.partition("::")[2] for name in figures["failures"]]
        last_line = f"{len(failures)} failed: {', '.join(failures)[:300]}" if failures else _last_words(output)
        return figures | {"error": last_line, "final": True, "text": output[-8000:]}
    return figures


def step(phase: Phase) -> None:
    """Measure a training step in fp16 NCHW, in channels_last bf16, compiled, and in the whole program."""
    options = phase.options
    phase.ceilings()
    sizes = options.batch_sizes or ([2048, 512, 256, 1024] if phase.on_gpu else [16])
    steps = options.steps or (20 if phase.on_gpu else 3)
    for size in sizes:
        key = {"phase": "step", "batch_size": size, "steps": steps, "model": options.model, "arguments": phase.extra}
        pending = [way for way in options.ways if not phase.results.is_done(**key, way=way)]
        plain = None
        # Ratios are within one run, so measure `plain` again when adding to earlier rows.
        for way in dict.fromkeys(["plain", *pending]) if pending else []:
            row = phase.item(
                key | {"way": way},
                functools.partial(_step, phase, way, size, steps, plain),
                again=way not in pending,
            )
            plain = row if way == "plain" else plain
    phase.finish(step_table(latest(phase.results.rows, "step")))


def _step(phase: Phase, way: str, batch_size: int, steps: int, plain: Json | None) -> Json:
    options = phase.options
    with tempfile.TemporaryDirectory() as folder:
        # The compiler cache is empty, so the first step includes compilation.
        cache = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        if way == "program":
            run = {"arguments": phase.short_run(batch_size, steps, epochs=3), "output_dir": f"{folder}/run"}
            asked = {"what": "program", "recipe": str(options.recipe), **run}
        else:
            asked = {"what": "bare", "way": way, "network": options.model or STEP_BYTES_MODEL}
        found = phase.measure(asked | {"batch_size": batch_size, "steps": steps}, **cache, **phase.launch)
        if way == "compiled" and "error" not in found:
            warm = phase.measure(asked | {"batch_size": batch_size, "steps": steps}, **cache, **phase.launch)
            found["warm_first_step_seconds"] = warm.get("first_step_seconds")
    if speed := found.get("images_per_second"):
        found["ratio"] = speed / plain["images_per_second"] if plain and "error" not in plain else None
        ceilings = phase.results.find(phase="check", what="ceilings") or {}
        bandwidth = ceilings.get("copy_bytes_per_second")
        counted = phase.on_gpu and bandwidth and (options.model or STEP_BYTES_MODEL) == STEP_BYTES_MODEL
        found["share_of_bandwidth"] = speed * STEP_BYTES[way] / bandwidth if counted else None
        if way == "plain":
            found["ratio"] = 1.0
    return found


def train(phase: Phase) -> None:
    """Train a recipe as a user does, over as many calls as needed; then add its result, curve, table row and report."""
    options, results = phase.options, phase.results
    recipe, run = options.recipe, options.run_dir or ROOT / "runs" / f"gpu-{options.recipe.stem}"
    key = {"phase": "train", "recipe": str(recipe), "arguments": phase.extra, "run": str(run)}
    status = _status(run)
    if status.get("status") != "finished":
        while True:
            before, started = _status(run).get("step", 0), time.monotonic()
            ended = phase.run(
                [sys.executable, str(recipe), "--output-dir", str(run), *phase.extra],
                shown=True,
                environment=phase.launch,
            )
            seconds, status = time.monotonic() - started, _status(run)
            call = {"what": "call", "from_step": before, "to_step": status.get("step", 0), "seconds": seconds}
            results.add(key | call | {"exit_code": ended.code})
            if ended.code != LOCKED or phase.seconds_left < 5:
                break
            time.sleep(2)  # The process of a killed call is still saving.
        if ended.code in (RESUMABLE, LOCKED) or ended.late:
            phase.unfinished = True
        elif ended.code:
            phase.failed = True
    if status.get("status") == "finished":
        row = phase.item(key | {"what": "result"}, lambda: phase.measure({"what": "result", "run": str(run)}))
        if row is not None and "error" not in row and all(map(importlib.util.find_spec, ("matplotlib", "jinja2"))):
            phase.item(key | {"what": "report"}, lambda: _report(phase, run))
    phase.finish(train_table(latest(results.rows, "train")))


def _report(phase: Phase, run: Path) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        ended = phase.run([sys.executable, "-m", "cifar100_tk.report", str(run), "--to", f"{folder}/report"])
        if ended.late:
            return {"error": TIME_IS_UP}
        if ended.code:
            return {"error": _last_words(ended.output), "final": True}
        to = phase.results.path.with_name(f"{phase.results.path.stem}-{run.name}.html")
        shutil.copyfile(f"{folder}/report/report.html", to)
        return {"file": to.name}


def _status(run: Path) -> Json:
    try:
        found: Json = json.loads((run / "run_status.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def latest(rows: list[Json], phase: str) -> list[Json]:
    """Return the newest row of each measurement of a phase, under the conditions of its newest row."""
    of_phase = [row for row in rows if row["phase"] == phase]
    names = (
        "what",
        "file",
        "way",
        "batch_size",
        "steps",
        "model",
        "recipe",
        "arguments",
        "run",
        "from_step",
        "to_step",
    )
    newest = {
        json.dumps([row.get(name) for name in names]): row
        for row in of_phase
        if row["conditions"] == of_phase[-1]["conditions"]
    }
    return list(newest.values())


def check_table(rows: list[Json]) -> list[str]:
    """Return a line for each check."""
    lines = ["| looked at | found |", "| --- | --- |"]
    for row in rows:
        subject = row["file"] if row["what"] == "tests" else row["what"]
        lines.append(f"| {subject} | {row['error'] if 'error' in row else _found(row)} |")
    return ["\n".join(lines)]


def _found(row: Json) -> str:
    if row["what"] == "ceilings":
        side = f"{row['matmul_side']:,}"
        return (
            f"copies at {row['copy_bytes_per_second'] / 1e9:,.0f} GB/s, read and written; "
            f"bf16 product of {side} x {side} matrices at {row['matmul_flop_per_second'] / 1e12:,.3g} TFLOP/s"
        )
    if row["what"] == "profile":
        return (
            f"batch {row['batch_size']:,}: {row['step_ms']:.1f} ms a step, {row['kernels_ms']:.1f} ms of it in "
            f"{row['kernels_a_step']:,.0f} kernels"
        )
    if row["what"] == "tests":
        if "skipped_for" in row:
            return f"not run, {', '.join(row['skipped_for'])} not installed"
        return ", ".join(f"{row[word]} {word}" for word in ("passed", "failed", "error", "skipped") if row.get(word))
    return "no problems found"


def step_table(rows: list[Json]) -> list[str]:
    """Return a line for each variant and batch size."""
    speeds = ["batch", "way", "images/s", "ratio", "ms a step", "of bandwidth", "peak memory"]
    heads = [*speeds, "first step", "warm", "augmentation", "beside the step"]
    lines = [f"| {' | '.join(heads)} |", "| --: | --- |" + " --: |" * (len(heads) - 2)]
    for row in sorted(rows, key=lambda row: (-row["batch_size"], WAYS.index(row["way"]))):
        if "error" in row:
            lines.append(f"| {row['batch_size']} | {row['way']} | {row['error']} |" + " |" * (len(heads) - 3))
            continue
        ms = 1e3 * row["batch_size"] / row["images_per_second"]
        cells = (
            str(row["batch_size"]),
            row["way"],
            f"{row['images_per_second']:,.0f}",
            _shown(row.get("ratio"), "{:.2f}x"),
            f"{ms:,.1f}",
            _shown(row.get("share_of_bandwidth"), "{:.0%}"),
            _shown(row["peak_memory_bytes"] and row["peak_memory_bytes"] / 1e9, "{:.1f} GB"),
            _shown(row["first_step_seconds"], "{:.3g} s"),
            _shown(row.get("warm_first_step_seconds"), "{:.3g} s"),
            _time_and_share(row, "augmentation"),
            _time_and_share(row, "augmentation_beside"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return ["\n".join(lines)]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _time_and_share(row: Json, name: str) -> str:
    return f"{row[f'{name}_ms']:.2f} ms, {row[f'{name}_share']:.1%}" if f"{name}_ms" in row else "-"


def train_table(rows: list[Json]) -> list[str]:
    """Return the calls of each run, and for a finished run its result and row for a results table."""
    lines = ["| run | steps | seconds | ended |", "| --- | --: | --: | --- |"]
    ends = {0: "finished", RESUMABLE: "time was up, all saved"}
    sections = []
    for row in rows:
        if row["what"] == "call":
            end = ends.get(row["exit_code"], f"exit code {row['exit_code']}")
            steps = f"{row['from_step']:,} to {row['to_step']:,}"
            lines.append(f"| {Path(row['run']).name} | {steps} | {row['seconds']:.1f} | {end} |")
        elif "error" in row:
            sections.append(f"{row['what']}: {row['error']}")
        elif row["what"] == "result":
            sections.append(
                f"{Path(row['run']).name}: top-1 {row['top1']:.2%}, top-5 {row['top5']:.2%} ({row['split']}) after "
                f"{row['epochs']} epochs; {row['epoch_seconds']:.2f} s an epoch, {row['images_per_second']:,.0f} images/s "
                f"(medians); {_shown(row['wall_seconds'], '{:,.1f} s')} of wall time, compiling, evaluations and checkpoints "
                f"included"
            )
            sections.append(row["markdown"])
    return ["\n".join(lines), *sections]


def document(rows: list[Json]) -> str:
    """Return the latest results of all phases as Markdown, with their conditions."""
    parts = [f"# {rows[-1]['conditions']['card']}"]
    tables: dict[str, Callable[[list[Json]], list[str]]] = {
        "check": check_table,
        "step": step_table,
        "train": train_table,
    }
    for phase, table in tables.items():
        if mine := latest(rows, phase):
            parts += [f"## {phase}", _conditions(mine[-1]), *table(mine)]
            parts += [detail for row in mine for detail in _details(row)]
    return "\n\n".join(parts) + "\n"


def _conditions(row: Json) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in row["conditions"].items() if value is not None)
    return f"{row['date'][:10]}, `{row['command']}`\n\n{facts}"


def _details(row: Json) -> Iterator[str]:
    """Yield the sections that are too long for the table of a phase."""
    if row.get("text"):
        name = row.get("file", row["what"])
        yield f"### {name}\n\n```\n{row['text'].rstrip()}\n```"
    if row.get("top"):
        lines = [
            "### kernels by time",
            "",
            "| kernel | ms a step | calls a step | share |",
            "| --- | --: | --: | --: |",
        ]
        for kernel in row["top"]:
            name = kernel["kernel"].replace("|", "\\|")[:100]
            lines.append(
                f"| `{name}` | {kernel['ms_a_step']:.3f} | {kernel['calls_a_step']:.1f} | {kernel['share']:.1%} |"
            )
        yield "\n".join(lines)
    if row.get("curve"):
        measured = [line for line in row["curve"] if any(name.endswith("top1") for name in line)]
        names = list(dict.fromkeys(name for line in measured for name in line))
        lines = [f"### curve of {Path(row['run']).name}", "", f"| {' | '.join(names)} |", "|" + " --: |" * len(names)]
        lines += [
            "| " + " | ".join(f"{line[name]:.6g}" if name in line else "" for name in names) + " |" for line in measured
        ]
        yield "\n".join(lines)


def _digest() -> str:
    """Return an identifier of the code; rows of other code are measured again."""
    files = [*ROOT.glob("cifar100_tk/**/*.py"), *ROOT.glob("recipes/*.py"), *ROOT.glob("benchmarks/gpu*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _last_words(output: str) -> str:
    """Return the last line that is not blank, which contains the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _echo(log: Path, place: int) -> int:
    """Print a log from an offset on. Returns its new end."""
    with log.open("rb") as file:
        file.seek(place)
        more = file.read()
    sys.stdout.write(more.decode(errors="replace"))
    sys.stdout.flush()
    return place + len(more)


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Send SIGTERM to a process, and SIGKILL if it does not exit in time."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    """Receive SIGTERM if this script is killed, so that a run saves its work and releases its folder."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def main() -> None:
    """Run a phase and exit with its code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    phases = {"check": check, "step": step, "train": train}
    parser.add_argument("phase", choices=phases, help="what to measure")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="output folder")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of the phase")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "resnet50.py", help="recipe file")
    parser.add_argument("--run-dir", type=Path, default=None, help="run folder of train; default: runs/gpu-RECIPE")
    parser.add_argument("--model", default=None, help="timm name of the network for check and step")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=None, help="images per step; check uses the first"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="variants of the step")
    parser.add_argument("--steps", type=int, default=None, help="number of timed steps")
    options, extra = parser.parse_known_args()
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g} is not positive; give 9, or fewer for a shorter phase.")
    for name, value in (("--batch-sizes", size) for size in options.batch_sizes or []):
        if value < 2:
            parser.error(f"{name} {value} is too small to train on; give 2 or more.")
    if options.steps is not None and options.steps < 2:
        parser.error(f"--steps {options.steps} is too few to time; give 2 or more.")
    if "--output-dir" in {argument.partition("=")[0] for argument in extra}:
        parser.error("--output-dir is the recipe's run folder, which train names; give --run-dir instead.")
    if not options.recipe.is_file():
        parser.error(f"--recipe {options.recipe} is not a file; give a recipe file, such as recipes/resnet50.py.")
    for name in ("output", "recipe", "run_dir"):
        if path := getattr(options, name):
            setattr(options, name, path.absolute())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(RESUMABLE))
    phases[options.phase](Phase(options, extra))


if __name__ == "__main__":
    main()
