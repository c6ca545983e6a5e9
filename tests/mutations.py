"""Break one line of the package at a time, and list whether the tests beside it notice.

    python tests/mutations.py              # all breaks, in a copy of the tree; writes tests/mutations.md
    python tests/mutations.py draws mix    # only those of some topics; keeps the rows of the others

The tests of every topic must pass on the unbroken copy first. Each break then runs the tests named for it until one fails:
red. Green means that nothing noticed. Ends with 1 if any break stays green.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutations.md"
PRELOADED = [
    "pytest",
    "hypothesis",
    "beartype",
    "jaxtyping",
    "torch",
    "timm",
    "timm.data.mixup",
    "accelerate",
]
"""Imported once; every run of pytest is forked from there. Nothing of the package is among them."""


class Break(NamedTuple):
    """A change of one line that every user would want noticed."""

    file: str
    """Below cifar100_tk/."""
    old: str
    """Part of a line, or of several, that occurs once in the file."""
    new: str
    tests: str
    """Files or tests below tests/unit/, separated by spaces."""


DRAWS, CHAIN, MIX = "test_draws.py", "augment/test_augment_chain.py", "augment/test_augment_finish_and_mix.py"
GEOMETRY, LOADER, STATE = "augment/test_augment_geometry.py", "training/test_loader.py", "training/test_state.py"
OPTIM, LOSS, CHECKPOINT = "optim/test_optim.py", "optim/test_loss.py", "runs/test_checkpoint.py"
RUN_FOLDER, METRICS, SCORES = "runs/test_run_folder.py", "evaluation/test_metrics.py", "evaluation/test_scores.py"
PREDICTIONS, RESUME = "evaluation/test_predictions.py", "training/test_resuming.py"

BREAKS: dict[str, list[Break]] = {
    "draws": [
        Break("draws.py", "_ROUNDS = 10", "_ROUNDS = 9", DRAWS),
        Break("draws.py", "counters[:, :, 1] = when", "counters[:, :, 1] = 0", DRAWS),
        Break("draws.py", "= zlib.crc32(purpose.encode())", "= 0", DRAWS),
        Break("draws.py", "(seed & 0xFFFFFFFF, seed >> 32)", "(seed & 0xFFFFFFFF, 0)", DRAWS),
        Break("draws.py", "index.astype(np.uint32)[:, None]", "np.arange(len(index))[:, None]", DRAWS),
        Break("draws.py", "np.argsort((high << _SHIFT) | low,", "np.argsort(low,", DRAWS),
        Break("draws.py", "        np.random.set_state(numpy_state)", "        pass", DRAWS),
    ],
    "augmentation": [
        Break("augment/crop.py", "(SIDE + 1 - width)", "(SIDE - width)", GEOMETRY),
        Break("augment/crop.py", "np.rint(np.sqrt(area / ratio))", "np.rint(np.sqrt(area * ratio))", GEOMETRY),
        Break("augment/crop.py", "(2 * self.padding + 1)", "(2 * self.padding)", GEOMETRY),
        Break("augment/flip.py", "in_even_epochs ^ bool(draws.epoch % 2)", "in_even_epochs", GEOMETRY),
        Break(
            "augment/flip.py",
            '"flip": draws.uniform(1)[:, 0] < self.p',
            '"flip": draws.uniform(1)[:, 0] > self.p',
            GEOMETRY,
        ),
        Break(
            "augment/auto.py",
            "(drawn[:, 2:4] <= chance[row])",
            "(drawn[:, 2:3] <= chance[row])",
            "augment/test_augment_ops.py",
        ),
        Break(
            "augment/auto.py",
            "(drawn[:, 4:6] < 0.5), -1.0, 1.0)",
            "(drawn[:, 4:6] < 0.5), 1.0, 1.0)",
            "augment/test_augment_ops.py",
        ),
        Break("augment/policies.py", '("TranslateX", 0.3, 9)', '("TranslateX", 0.3, 8)', "augment/test_augment_ops.py"),
        Break(
            "augment/chain.py", 'f"augment.{position}.{augmentation.stream}"', 'f"augment.{augmentation.stream}"', CHAIN
        ),
        Break("augment/finish.py", "1 / (255 * std)", "1 / (256 * std)", MIX),
        Break("augment/finish.py", "(place < size)", "(place <= size)", MIX),
        Break("augment/finish.py", "(drawn[:, 0] < self.p)", "(drawn[:, 0] < 2 * self.p)", MIX),
        Break(
            "augment/progressive.py",
            "step >= round(start * num_steps)",
            "step > round(start * num_steps)",
            "augment/test_progressive.py",
        ),
    ],
    "mix": [
        Break(
            "augment/mix.py",
            'seeded_globals(seed, "mix", step):\n            mixed',
            'seeded_globals(seed, "mix", 0):\n            mixed',
            f"{MIX} {LOADER}",
        ),
        Break("augment/mix.py", 'word(seed, "mix", step)', 'word(seed, "mix", 0)', "augment/test_mix_per_image.py"),
        Break("augment/mix.py", "label_smoothing=self.smoothing", "label_smoothing=0.0", MIX),
        Break("augment/mix.py", "on_value=1.0 - smoothing + off", "on_value=1.0 - smoothing", MIX),
        Break("training/loader.py", "self.batch_size - 1 - first[::-1]", "first + self.batch_size // 2", LOADER),
        Break("optim/loss.py", "self.smoothing * num_classes / (num_classes - 1)", "self.smoothing", LOSS),
        Break("training/loader.py", "start = step % self.steps_per_epoch * self.batch_size", "start = 0", LOADER),
        Break("training/loader.py", "return step // self.steps_per_epoch", "return 0", LOADER),
    ],
    "schedule": [
        Break("optim/schedules.py", "done, warmup = step + 1,", "done, warmup = step,", OPTIM),
        Break("optim/schedules.py", "(done - warmup) / (num_steps - warmup)", "done / num_steps", OPTIM),
        Break(
            "optim/schedules.py",
            "return self.final_lr + (peak_lr - self.final_lr) *",
            "return (peak_lr - self.final_lr) *",
            OPTIM,
        ),
        Break(
            "optim/schedules.py",
            "round(self.warmup_epochs * steps_per_epoch)",
            "round(self.warmup_epochs) * steps_per_epoch",
            OPTIM,
        ),
        Break(
            "optim/optimizers.py",
            'if p.ndim <= 1], "weight_decay": 0.0}',
            'if p.ndim <= 1], "weight_decay": self.weight_decay}',
            OPTIM,
        ),
        Break("optim/ema.py", "weight=1.0 - decay)", "weight=decay)", OPTIM),
        Break(
            "training/plan.py",
            "return (step + 1) % self.pipeline.order.steps_per_epoch == 0",
            "return step % self.pipeline.order.steps_per_epoch == 0",
            RESUME,
        ),
    ],
    "resume": [
        Break(
            "training/state.py", '        load_named_state(self.net, self.optimizer, tensors["optimizer"])\n', "", STATE
        ),
        Break(
            "training/state.py",
            '            self.ema.module.load_state_dict(dict(tensors["ema"]))',
            "            pass",
            STATE,
        ),
        Break("training/state.py", '"dropout", step, self', '"dropout", 0, self', STATE),
        Break("training/state.py", 'draws.word(recipe.seed, "weights", 0)', "0", STATE),
        Break("training/state.py", "self.ema.update(self.net, self.step)", "self.ema.update(self.net, step)", STATE),
        Break("train.py", "* (len(images) / len(batch.images))", "* (micro_batch / len(batch.images))", STATE),
        Break(
            "training/open_run.py",
            "self.state.epoch_loss += status.loss",
            "self.state.epoch_loss = status.loss",
            RESUME,
        ),
        Break("runs/run_folder.py", "is not None and at <= step]", "is not None and at < step]", RUN_FOLDER),
        Break(
            "runs/run_config.py",
            "if old.get(rows_sha256) != new[rows_sha256]:",
            "if old.get(sha256) != new[sha256]:",
            RUN_FOLDER,
        ),
    ],
    "checkpoint": [
        Break("runs/checkpoint.py", "[:-keep]", "[: -keep - 1]", CHECKPOINT),
        Break("runs/checkpoint.py", 'and atomic.sha256(file) == entry["sha256"]', "", CHECKPOINT),
        Break("runs/checkpoint.py", "if text != _sealed(manifest):", "if not text:", CHECKPOINT),
        Break(
            "runs/checkpoint.py",
            'sorted(folder.glob(f"{PREFIX}*"), reverse=True):\n        try',
            'sorted(folder.glob(f"{PREFIX}*")):\n        try',
            CHECKPOINT,
        ),
        Break("storage/atomic.py", "        os.fsync(file.fileno())\n    written", "    written", CHECKPOINT),
        Break("storage/atomic.py", "if sha256(path) != written.sha256:", "if False:", CHECKPOINT),
        Break(
            "storage/atomic.py",
            '        failpoint.reach(f"{folder.name}.renamed")\n        _sync_folder(folder.parent)',
            '        failpoint.reach(f"{folder.name}.renamed")',
            CHECKPOINT,
        ),
    ],
    "metrics": [
        Break("evaluation/metrics.py", "for k in (1, 5)]", "for k in (1, 6)]", METRICS),
        Break(
            "evaluation/metrics.py",
            "((logits == true) & earlier)",
            "((logits == true) & ~earlier & (logits > true))",
            METRICS,
        ),
        Break(
            "evaluation/metrics.py",
            "return rank.masked_fill(logits.isnan().any(dim=1), torch.iinfo(torch.int64).max)",
            "return rank",
            METRICS,
        ),
        Break("evaluation/scores.py", "ECE_BINS = 15", "ECE_BINS = 10", SCORES),
        Break("evaluation/scores.py", "valid = guesses >= 0", "valid = guesses >= -1", SCORES),
        Break("evaluation/predictions.py", "    model.eval()\n", "", PREDICTIONS),
        Break(
            "evaluation/predictions.py", ".transpose(0, 1).flatten(0, 1)[:count]", ".flatten(0, 1)[:count]", PREDICTIONS
        ),
    ],
}
"""By topic."""


def copy_of_the_tree(folder: Path) -> Path:
    """Copy the files that git knows, as they are now. Returns the copy."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, names.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run_tests(tree: Path, tests: str, log: Path) -> None:
    """Run pytest in this process until a test fails, and end the process with its exit code."""
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    sys.dont_write_bytecode = True  # Two changes within a second would share one.
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import pytest

    # In the order of the files: a random one would be another for each break.
    words = ["-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--tb=line"]
    words += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # Of what was imported beforehand.
    sys.exit(int(pytest.main([*words, *(f"tests/unit/{test}" for test in tests.split())])))


def outcome(server: multiprocessing.context.ForkServerContext, tree: Path, tests: str) -> tuple[int, str]:
    """Return pytest's exit code and what it printed."""
    log = tree.with_suffix(".log")
    process = server.Process(target=run_tests, args=(tree, tests, log))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
        process.join()
    return (process.exitcode if process.exitcode is not None else -1), log.read_text()


def first_failure(said: str) -> str:
    found = re.search(r"^(?:FAILED|ERROR) tests/unit/(\S+?)(?:\[.*)?(?: - .*)?$", said, re.MULTILINE)
    return found[1] if found else "the run was killed after 300 s"


def check(topic: str, broken: Break, server: multiprocessing.context.ForkServerContext, tree: Path) -> tuple[bool, str]:
    """Break one line, run its tests, and mend it. Returns whether they noticed, and a row of the list."""
    file = tree / "cifar100_tk" / broken.file
    text = file.read_text()
    if text.count(broken.old) != 1:
        raise SystemExit(
            f"{broken.file}: {broken.old!r} occurs {text.count(broken.old)} times, and must occur once; mend the list."
        )
    file.write_text(text.replace(broken.old, broken.new))
    try:
        code, said = outcome(server, tree, broken.tests)
    finally:
        file.write_text(text)
    if code not in (0, 1):
        raise SystemExit(f"{broken.file}: {broken.new!r} ends pytest with {code}:\n{said[-2000:]}")
    noticed = first_failure(said) if code else "**green**"
    old, new = (" ".join(one.split()).replace("|", "\\|") for one in (broken.old, broken.new))
    row = f"| {topic} | `{broken.file}` | `{old}` | {f'`{new}`' if new else 'gone'} | {noticed} |"
    print(f"{'red  ' if code else 'GREEN'} {topic}: {broken.file}: {old} -> {new or 'gone'}  ({noticed})", flush=True)
    return bool(code), row


def write_list(topics: list[str], rows: list[str]) -> None:
    """Write the rows of some topics, and keep those of the others."""
    old = [line for line in LIST.read_text().splitlines() if line.startswith("| ")][1:] if LIST.exists() else []
    kept = [row for row in old if row.split(" | ")[0].removeprefix("| ") in BREAKS.keys() - set(topics)]
    rows = sorted(kept + rows, key=lambda row: list(BREAKS).index(row.split(" | ")[0].removeprefix("| ")))
    red = sum("**green**" not in row for row in rows)
    LIST.write_text(
        f"# Mutations\n\n{red} of {len(rows)} breaks of one line are noticed by the tests beside it. "
        "Written by `make mutations`.\n\n"
        "| topic | file below cifar100_tk/ | line | broken | first test that fails |\n|---|---|---|---|---|\n"
        + "".join(f"{row}\n" for row in rows)
    )


def main() -> None:
    topics = sys.argv[1:] or list(BREAKS)
    if unknown := set(topics) - BREAKS.keys():
        raise SystemExit(f"{sorted(unknown)[0]} is not a topic; choose from {', '.join(BREAKS)}.")
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }  # As tests/conftest.py does, too late for what is preloaded.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_the_tree(Path(folder, "tree"))
        files = sorted({test for topic in topics for broken in BREAKS[topic] for test in broken.tests.split()})
        code, said = outcome(server, tree, " ".join(files))
        if code:
            raise SystemExit(f"the tests fail without any break:\n{said[-3000:]}")
        results = [check(topic, broken, server, tree) for topic in topics for broken in BREAKS[topic]]
    red = sum(noticed for noticed, _ in results)
    print(f"{red} of {len(results)} red, {time.monotonic() - start:.0f} s")
    write_list(topics, [row for _, row in results])
    sys.exit(red < len(results))


if __name__ == "__main__":
    main()
