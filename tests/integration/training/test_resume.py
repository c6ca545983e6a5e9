"""Going on elsewhere: with another number of processes, in another way, or not at all; and what the verify command says."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from forks import LITTLE, STEPS, Trainer
from interrupted import ONE, Whole, resumes_on
from runs import SHAPES, assert_same_tensors, contents, lines, newest, status

from cifar100_tk.data.copies import prepare
from cifar100_tk.errors import ConfigError, DataError, NotFiniteError, ResumeError, StoppedError
from cifar100_tk.runs.__main__ import verify_resume, verify_run
from cifar100_tk.runs.checkpoint import save
from cifar100_tk.runs.files import read_recipe
from cifar100_tk.storage import failpoint
from cifar100_tk.storage.atomic import sha256
from cifar100_tk.train import train
from cifar100_tk.training.plan import RunOptions


@pytest.mark.distributed
def test_a_run_goes_on_with_more_processes(forkserver: ForkServerContext, tmp_path: Path) -> None:
    resumes_on(forkserver, tmp_path, before=1, after=2)


def test_a_run_goes_on_with_the_same_images_from_elsewhere_and_with_no_others(
    forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    path, copy = tmp_path / "run", tmp_path / "copy"
    prepare(SHAPES, copy)
    (file,) = copy.glob("cifar100/train-*.parquet")
    as_it_was = file.read_bytes()
    elsewhere = dataclasses.replace(LITTLE, data=dataclasses.replace(SHAPES, source=str(copy)))
    patch = ("signal_at", {"step-00000001.done": int(signal.SIGTERM)})
    assert Trainer(forkserver, path, patch=patch, **ONE).wait() == 75
    before = contents(path)

    rows = pq.read_table(file)
    pq.write_table(rows.take([*range(1, 100), 0]), file)
    refused = Trainer(forkserver, path, recipe=elsewhere, **ONE)
    assert refused.wait() == 2 and contents(path) == before
    sentence = rf"other train images: they were 100 of shapes100 \(sha256 (\w+)\) and are 100 of {copy} \(sha256 \1\), "
    assert re.search(sentence + "the same in another order", refused.said()), refused.said()

    file.write_bytes(as_it_was)
    again = Trainer(forkserver, path, recipe=elsewhere, **ONE)
    assert again.wait() == 0 and "resumes from   step 1," in again.said(), again.said()
    assert_same_tensors(newest(path), newest(uninterrupted(ONE)))
    assert lines(path) == lines(uninterrupted(ONE))
    # What measures the run later looks where the images are now.
    assert read_recipe(path)["data"]["source"] == str(copy)


@pytest.mark.parametrize(
    "options",
    [
        {"pipeline": "host", "workers": 0},
        {"pipeline": "host", "workers": 2},
        {"eval_every": 2},
        {"limit_eval_batches": 1},
        {"checkpoint_every": 2, "keep": 5},
        {"checkpoint_every": None},
        {"quiet": True, "log_every": 1000},
    ],
    ids=[
        "no worker",
        "two workers",
        "fewer evaluations",
        "smaller evaluations",
        "fewer checkpoints",
        "checkpoints by time",
        "no logging",
    ],
)
def test_the_result_has_one_hash_however_it_is_computed_and_watched(
    options: dict[str, Any], forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    trainer = Trainer(forkserver, tmp_path / "run", **(ONE | options))
    assert trainer.wait() == 0, trainer.said()
    assert hashes(tmp_path / "run") == hashes(uninterrupted(ONE))


def test_another_seed_has_another_hash(forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole) -> None:
    # Else the test above would say nothing.
    trainer = Trainer(forkserver, tmp_path / "run", recipe=dataclasses.replace(LITTLE, seed=1), **ONE)
    assert trainer.wait() == 0, trainer.said()
    ours, theirs = hashes(tmp_path / "run"), hashes(uninterrupted(ONE))
    assert ours.keys() == theirs.keys() and all(ours[name] != theirs[name] for name in theirs)


def hashes(path: Path) -> dict[str, str]:
    """The SHA-256 of the weights of a finished run, in all their roles, and of its optimizer."""
    files = [path / "model" / "model.safetensors", *newest(path).path.glob("*.safetensors")]
    assert len(files) == 4
    return {str(file.relative_to(path)): sha256(file) for file in files}


def test_what_a_run_is_computed_with_is_told_where_it_is_another(
    forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    path = tmp_path / "run"
    for recorded in (
        None,
        {"versions": {"torch": "1.0"}, "precision": "bf16", "device": "cpu:0 (1 thread)", "threads": 9},
    ):
        patch = ("signal_at", {f"step-0000000{3 if recorded else 1}.done": int(signal.SIGTERM)})
        assert Trainer(forkserver, path, patch=patch, **ONE).wait() == 75
        found = newest(path)
        shutil.rmtree(found.path)  # In its place comes one that is noted to be of another machine, or of none.
        facts = {name: value for name, value in found.facts.items() if name != "environment"}
        save(
            path / "checkpoints",
            found.step,
            found.tensors,
            facts | ({"environment": recorded} if recorded else {}),
            keep=1,
        )
    (path / "environment.json").write_text("[")  # What counts is what the checkpoint was made with.
    with (path / "metrics.jsonl").open("r+b") as file:
        file.write(b"\xff")  # The only line.
    again = Trainer(forkserver, path, **ONE)
    assert again.wait() == 0, again.said()
    notes = [line for line in again.said().splitlines() if line.startswith("  note")]
    torch_now = importlib.metadata.version("torch")
    assert notes == [
        f"  note           precision was bf16 and is float32; versions.torch was 1.0 and is {torch_now}: batches and "
        "learning rates stay the same, but sums are rounded differently, so the weights will not match those of an "
        "unchanged run bit for bit",
        "  note           dropped 1 unreadable line of metrics.jsonl or steps.jsonl",
    ]
    assert [line["epoch"] for line in lines(path)] == [2]
    assert_same_tensors(newest(path), newest(uninterrupted(ONE)))


@pytest.mark.usefixtures("on_cpu")
def test_a_dry_run_says_where_the_run_would_go_on_from(
    forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    patch = ("signal_at", {"step-00000003.done": int(signal.SIGTERM)})
    assert Trainer(forkserver, path, patch=patch, **ONE).wait() == 75
    for folder, sentence in (
        (path, f"resumes from   step 3, {path / 'checkpoints' / 'step-00000003'}\n"),
        (tmp_path / "new", "starts         at the first step\n"),
    ):
        before = contents(folder)
        assert train(LITTLE, RunOptions(output_dir=folder, dry_run=True, limit_train_batches=STEPS)) is None
        plan, last = capsys.readouterr().out.rsplit("\n  ", 1)
        assert last.startswith(sentence) and f"writes to      {folder}" in plan
        assert contents(folder) == before
    with pytest.raises(
        ConfigError, match="holds a finished run, which is never overwritten; give --extend-to for more"
    ):
        train(LITTLE, RunOptions(output_dir=uninterrupted(ONE), dry_run=True, limit_train_batches=STEPS))
    assert f"writes to      {uninterrupted(ONE)}" in capsys.readouterr().out


def test_two_runs_into_one_folder_the_second_one_ends_with_its_own_code(
    forkserver: ForkServerContext, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    first = Trainer(forkserver, path, patch=("wait_at", "step-00000001.done", str(tmp_path / "go on")), **ONE)
    while not (path / "run_status.json").exists():
        assert first.processes[0].is_alive()
    second = Trainer(forkserver, path, **ONE)
    assert second.wait() == 7, second.said()
    assert f"process {first.pids[0]} on " in second.said() and f"is writing {path}; wait for it" in second.said()
    first.processes[0].kill()  # Its lock goes with it.
    assert first.wait() == -signal.SIGKILL
    third = Trainer(forkserver, path, **ONE)
    assert third.wait() == 0 and status(path)["status"] == "finished", third.said()


def test_verify_tells_what_is_valid(uninterrupted: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    shutil.copytree(uninterrupted({}), path)
    newer = path / "checkpoints" / "step-00000004"
    verify_run(path)
    said = capsys.readouterr().out.splitlines()
    valid = ["step-00000002: valid", "step-00000004: valid"]
    assert said == [*valid, f"the run is finished; its model is in {path / 'model'}; --extend-to trains it further."]
    shutil.move(path / "checkpoints", tmp_path)  # To save space.
    verify_run(path)
    assert capsys.readouterr().out.splitlines() == said[2:]
    shutil.move(tmp_path / "checkpoints", path)
    (path / "run_status.json").unlink()
    verify_run(path)
    assert capsys.readouterr().out.splitlines() == [*valid, "the same command resumes from step-00000004."]
    (newer / "optimizer.safetensors").unlink()
    verify_run(path)
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("step-00000004: ") and "optimizer.safetensors is missing" in said[1]
    assert said[2] == "the same command resumes from step-00000002."
    (newer.with_name("step-00000002") / "manifest.json").unlink()
    for _ in range(2):
        with pytest.raises(ResumeError, match=r"no valid checkpoint in .*; start again with another --output-dir"):
            verify_run(path)
        for step in path.glob("checkpoints/step-*"):
            step.rename(step.with_name(f".bad-{step.name}"))
    shutil.rmtree(path / "checkpoints")
    capsys.readouterr()
    verify_run(path)
    assert "holds no checkpoint yet; the run starts at the first step" in capsys.readouterr().out
    with pytest.raises(
        DataError, match=r"is not a run folder \(it holds no recipe.json\); give the --output-dir of a run"
    ):
        verify_run(tmp_path)


def test_verify_is_a_command_with_an_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cifar100_tk.runs", "verify", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 3 and ended.stderr.startswith("python -m cifar100_tk.runs: ")
    assert "is not a run folder" in ended.stderr


@pytest.mark.slow
def test_verify_resume_proves_it_for_a_recipe(tmp_path: Path) -> None:
    # As a user calls it; eight steps of the smallest network.
    more = "--data.source shapes100 --data.shapes100-rows 100 100 --batch-size 10 --threads 1"
    recipe = Path(__file__).parents[3] / "recipes" / "quickstart.py"
    command = [sys.executable, "-m", "cifar100_tk.runs", "verify-resume", str(recipe), f"--more={more}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"killed after step 6 of 8 and resumed: all \d\d+ tensors are the same, bit for bit", ended.stdout)


def test_verify_resume_says_what_a_recipe_stumbled_over(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text("raise SystemExit('no such thing')")
    with pytest.raises(ResumeError, match=r"recipe.py .* ended with 1: no such thing"):
        verify_resume(tmp_path / "recipe.py")
    with pytest.raises(ConfigError, match=r"/none.py is not a file; give a recipe such as recipes/quickstart.py"):
        verify_resume(tmp_path / "none.py")
    with pytest.raises(
        ConfigError, match="--steps 1 is too short to kill a run in the middle of an epoch; give 2 or more"
    ):
        verify_resume(tmp_path / "recipe.py", steps=1)


def test_verify_resume_says_what_differs_and_by_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.py").touch()
    killed: list[str] = []

    def other_weights_each_time(
        command: list[str], *, env: dict[str, str], **_: object
    ) -> subprocess.CompletedProcess[str]:
        if env[failpoint.VARIABLE]:
            killed.append(env[failpoint.VARIABLE])
            return subprocess.CompletedProcess(command, -signal.SIGKILL)
        path = Path(command[command.index("--output-dir") + 1])
        weights = {"w": torch.ones(2) * (1.5 if path.name == "parts" else 1.0), "same": torch.ones(1)}
        save(path / "checkpoints", 8, {"model": weights}, {}, keep=1)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", other_weights_each_time)
    with pytest.raises(
        ResumeError, match=r"1 of 2 tensors are not bit for bit the same, model: w by up to 0\.5; on a GPU"
    ):
        verify_resume(tmp_path / "recipe.py")
    assert killed == ["step-00000006.done:1"]


# The examples of docs/resuming.md.

EXAMPLES = (Path(__file__).parents[3] / "docs" / "resuming.md").read_text()


def examples(language: str, with_words: str = "") -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", EXAMPLES, flags=re.DOTALL)
    return [block for block in blocks if with_words in block]


FAKES = {
    # What the scripts see of a trainer and its launcher: they take their time over a signal, and then end as the docs say.
    "python": """trap 'sleep 0.3; exit 75' USR1 TERM; touch "$LOG.started"
[ "$ENDS" ] && exit "$ENDS"
while true; do sleep 0.05; done""",
    "torchrun": """trap 'sleep 0.3; echo "{\\"status\\": \\"stopped\\"}" >"$SCRATCH/resnet50/run_status.json"; exit 1' TERM
mkdir -p "$SCRATCH/resnet50"; echo '{"status": "failed"}' >"$SCRATCH/resnet50/run_status.json"; touch "$LOG.started"
[ "$ENDS" ] && exit "$ENDS"
while true; do sleep 0.05; done""",
    "scontrol": 'echo "scontrol $*" >>"$LOG"',
}


def test_every_shell_example_is_one() -> None:
    assert len(examples("sh")) == 4
    for text in examples("sh"):
        checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=20)
        assert checked.returncode == 0 and checked.stderr == ""


@pytest.mark.parametrize(
    ("words", "sent", "ends", "code"),
    [
        ("#SBATCH", signal.SIGUSR1, "", 75),
        ("#SBATCH", signal.SIGTERM, "", 75),
        ("#SBATCH", None, "0", 0),
        ("#SBATCH", None, "6", 6),
        ("#SBATCH", None, "75", 75),
        ("torchrun", signal.SIGUSR1, "", 0),
        ("torchrun", signal.SIGTERM, "", 0),
        ("torchrun", None, "1", 0),
    ],
)
def test_a_slurm_example_hands_the_signal_on_and_requeues_only_a_run_that_was_saved(
    words: str, sent: signal.Signals | None, ends: str, code: int, tmp_path: Path
) -> None:
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (script,) = examples("sh", words)
    log = tmp_path / "log"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "SCRATCH": str(tmp_path), "ENDS": ends}
    with subprocess.Popen(["bash", "-c", script], env=environment | {"SLURM_JOB_ID": "7"}) as process:
        until = time.monotonic() + 20
        while not log.with_suffix(".started").exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2 if sent else 0)  # For the script to come to its `wait`.
        if sent:
            process.send_signal(sent)
        assert process.wait(timeout=20) == code
    saved = bool(sent) or ends == "75"
    assert (log.read_text() if log.exists() else "") == "scontrol requeue 7\n" * saved


KNOWN = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name"},
    "spec": {"backoffLimit", "podFailurePolicy", "template"},
    "spec.podFailurePolicy": {"rules"},
    "spec.podFailurePolicy.rules": {"action", "onExitCodes", "onPodConditions"},
    "spec.podFailurePolicy.rules.onExitCodes": {"containerName", "operator", "values"},
    "spec.podFailurePolicy.rules.onPodConditions": {"type"},
    "spec.template": {"spec"},
    "spec.template.spec": {"restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"},
    "spec.template.spec.containers": {"name", "image", "command", "resources", "volumeMounts"},
    "spec.template.spec.containers.resources": {"limits"},
    "spec.template.spec.containers.resources.limits": {"nvidia.com/gpu"},
    "spec.template.spec.containers.volumeMounts": {"name", "mountPath"},
    "spec.template.spec.volumes": {"name", "persistentVolumeClaim"},
    "spec.template.spec.volumes.persistentVolumeClaim": {"claimName"},
}
"""The fields of a batch/v1 Job that the example uses, as the reference of Kubernetes names them."""


def fields(value: Any, place: str = "") -> Iterator[tuple[str, set[str]]]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            yield place, set(item)
            for name, inner in item.items():
                yield from fields(inner, f"{place}.{name}".strip("."))


def test_the_kubernetes_example_says_what_the_exit_codes_mean() -> None:
    (text,) = examples("yaml")
    job = yaml.safe_load(text)
    found = list(fields(job))
    assert {place for place, _ in found} == KNOWN.keys() and all(names <= KNOWN[place] for place, names in found)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    # A failure policy wants pods that are not restarted in place.
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 30
    again, never, drained = job["spec"]["podFailurePolicy"]["rules"]
    for rule in (again, never):
        assert rule["onExitCodes"]["containerName"] == container["name"] and rule["onExitCodes"]["operator"] == "In"
    assert (again["action"], again["onExitCodes"]["values"]) == ("Ignore", [StoppedError.exit_code])
    hopeless = [ConfigError.exit_code, DataError.exit_code, ResumeError.exit_code, NotFiniteError.exit_code]
    assert (never["action"], never["onExitCodes"]["values"]) == ("FailJob", sorted(hopeless))
    assert drained == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    program, recipe, *arguments = container["command"]
    assert program == "python" and (Path(__file__).parents[3] / recipe).is_file()
    (mounted,) = container["volumeMounts"]
    assert arguments[0] == "--output-dir" and Path(arguments[1]).is_relative_to(mounted["mountPath"])
    assert mounted["name"] in [volume["name"] for volume in pod["volumes"]]
