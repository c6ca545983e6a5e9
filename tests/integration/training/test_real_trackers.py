"""The trackers that are installed here, without a server: a run that is killed is one run there too, with each figure once."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import struct
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from forks import LITTLE, Trainer
from runs import lines

from cifar100_tk.training.tensorboard import numbers_of

pytestmark = pytest.mark.filterwarnings("ignore")  # The packages' own.

Points = dict[str, list[tuple[int, Any]]]
"""Steps and values by name."""


def killed_and_resumed(
    server: ForkServerContext, path: Path, tracker: str, number: int = signal.SIGKILL, **variables: str
) -> str:
    """Train with a tracker, with a kill after a step that is logged and not saved. Returns what was printed."""
    options: dict[str, Any] = {"log_with": ("tensorboard", tracker)}
    killed = Trainer(server, path, patch=("with_environment", variables, "step-00000004.done", int(number)), **options)
    assert killed.wait() == (-signal.SIGKILL if number == signal.SIGKILL else 75), killed.said()
    assert '"step": 3' in (path / "trackers.json").read_text()
    again = Trainer(server, path, patch=("with_environment", variables), **options)
    assert again.wait() == 0, again.said()
    assert f"{tracker} failed" not in again.said()
    return again.said()


def wanted(path: Path) -> Points:
    """What the run's own files hold, without the speeds."""
    steps = [json.loads(line) for line in (path / "steps.jsonl").read_text().splitlines()]
    found: Points = {}
    for record in sorted([*steps, *lines(path)], key=lambda record: record["step"]):
        for name in record.keys() - {"epoch", "step"}:
            found.setdefault(name, []).append((record["step"], pytest.approx(record[name])))
    assert [step for step, _ in found["train/step_loss"]] == [1, 3] and len(found["test/ema_top1"]) == 2
    return found


def test_mlflow(forkserver: ForkServerContext, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    killed_and_resumed(forkserver, tmp_path / "run", "mlflow", MLFLOW_TRACKING_URI=uri)
    client = mlflow.MlflowClient(uri)
    [experiment] = client.search_experiments(filter_string="name = 'cifar100_tk'")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in numbers_of(LITTLE).items()}
    for name, points in wanted(tmp_path / "run").items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in history] == points


def test_trackio(forkserver: ForkServerContext, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    said = killed_and_resumed(forkserver, tmp_path / "run", "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    assert "Resumed existing run: run" in said
    [(name, number, found)] = in_trackio(tmp_path / "trackio")
    assert (name, number) == ("run", known(tmp_path / "run")["trackio"]["id"])
    assert {name: found[name] for name in wanted(tmp_path / "run")} == wanted(tmp_path / "run")
    with contextlib.closing(sqlite3.connect(next((tmp_path / "trackio").glob("*.db")))) as connection:
        [config] = [json.loads(text) for (text,) in connection.execute("SELECT config FROM configs")]
    assert numbers_of(LITTLE).items() <= config.items()


def test_trackio_never_continues_another_run_of_the_same_name(forkserver: ForkServerContext, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    path, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    variables = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    options: dict[str, Any] = {"log_with": ("trackio",)}
    for folder in (path, other):
        folder.parent.mkdir()
    stop = ("with_environment", variables, "step-00000003.done", int(signal.SIGTERM))
    assert Trainer(forkserver, path, patch=stop, **options).wait() == 75
    first = known(path)["trackio"]["id"]
    for folder in (other, path):
        trainer = Trainer(forkserver, folder, patch=("with_environment", variables), **options)
        assert trainer.wait() == 0, trainer.said()
    runs = {number: found for name, number, found in in_trackio(tmp_path / "trackio") if name == "run"}
    assert len(runs) == 3 and first in runs
    for folder in (other, path):
        found = runs[known(folder)["trackio"]["id"]]
        assert {name: found[name] for name in wanted(folder)} == wanted(folder)


def known(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "trackers.json").read_text())
    return content


def in_trackio(folder: Path) -> list[tuple[str, str, Points]]:
    """Name, id and points of each run in Trackio's database."""
    with contextlib.closing(sqlite3.connect(next(folder.glob("*.db")))) as connection:
        rows = connection.execute("SELECT run_name, run_id, step, metrics FROM metrics ORDER BY step").fetchall()
    found: dict[tuple[str, str], Points] = {}
    for name, number, step, text in rows:
        points = found.setdefault((name, number), {})
        for figure, value in json.loads(text).items():
            points.setdefault(figure, []).append((step, value))
    return [(*key, points) for key, points in found.items()]


def test_wandb(forkserver: ForkServerContext, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    variables = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    # W&B writes every 15 seconds, and when a run ends or stops; a kill costs what came after.
    killed_and_resumed(forkserver, tmp_path / "run", "wandb", signal.SIGTERM, **variables)
    sessions = sorted((tmp_path / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_ctime_ns)
    # One folder for each start, and one id: `wandb sync` makes one run of them.
    assert len(sessions) == 2 and all(
        folder.name.endswith(known(tmp_path / "run")["wandb"]["id"]) for folder in sessions
    )
    found: Points = {}
    for folder in sessions:
        for record in records(next(folder.glob("*.wandb"))):
            if record.HasField("run"):
                assert (record.run.project, record.run.display_name) == ("cifar100_tk", "run")
            if record.HasField("history"):
                values = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                for name in values.keys() - {"_step", "_timestamp", "_runtime"}:
                    found.setdefault(name, []).append((values["_step"], values[name]))
    assert {name: found[name] for name in wanted(tmp_path / "run")} == wanted(tmp_path / "run")


def records(file: Path) -> Iterator[Any]:
    """What is in a file of W&B's own: LevelDB's log of protobuf messages, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    make: Any = wandb_internal_pb2

    content, place, message = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:  # No message starts so close to the end of a block.
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        message += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # Whole, or the last part.
            record = make.Record()
            record.ParseFromString(message)
            yield record
            message = b""
