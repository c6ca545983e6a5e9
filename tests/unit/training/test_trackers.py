"""Trackers get every figure once, however often the run stops, and never end it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from runs import EMA, TINY, lines, ring_at, run, status

from cifar100_tk.errors import ConfigError, StoppedError
from cifar100_tk.train import train, train_step
from cifar100_tk.training import tensorboard
from cifar100_tk.training.plan import RunOptions
from cifar100_tk.training.trackers import RunTracker, trackers_of

pytestmark = pytest.mark.usefixtures("on_cpu")


class Ledger(tracking.GeneralTracker):  # type: ignore[misc]
    """A tracker such as a recipe file may register: a line for each call, in a folder beside the run."""

    name = "ledger"
    requires_logging_directory = True
    broken = False
    """True where its server is gone."""

    def __init__(self, project: str, run: str) -> None:
        super().__init__()
        self.file = Path(run).parent / f"{project}.jsonl"

    @property
    def tracker(self) -> Path:
        return self.file

    def _add(self, call: str, content: Any) -> None:
        if Ledger.broken:
            raise ConnectionError("no route to the ledger.\nTry again.")
        with self.file.open("a") as file:
            file.write(json.dumps([call, content]) + "\n")

    def start(self) -> None:
        self._add("start", None)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._add("numbers", values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self._add("log", {"step": step} | values)

    def finish(self) -> None:
        self._add("finish", None)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "ledger", Ledger)
    monkeypatch.setattr(Ledger, "broken", False)


def calls(path: Path, call: str, project: str = "cifar100_tk") -> list[Any]:
    """What the ledger was told."""
    rows = [json.loads(line) for line in (path.parent / f"{project}.jsonl").read_text().splitlines()]
    return [content for name, content in rows if name == call]


def figures(path: Path) -> list[dict[str, Any]]:
    """What the run has in its own files, in the order of the steps, without the speeds."""
    steps = [json.loads(line) for line in (path / "steps.jsonl").read_text().splitlines()]
    epochs = [{name: value for name, value in line.items() if name != "epoch"} for line in lines(path)]
    return sorted([*steps, *epochs], key=lambda line: line["step"])


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    speeds = ("images_per_second", "images_per_second_overall")
    return [{name: value for name, value in record.items() if name not in speeds} for record in records]


def test_a_run_that_stops_and_resumes_is_one_run_with_its_own_names_and_steps(tmp_path: Path) -> None:
    path = tmp_path / "run"
    options: dict[str, Any] = {"log_with": ("tensorboard", "ledger"), "log_every": 2, "eval_every": 1}
    ring_at[:] = [7]
    with pytest.raises(StoppedError):
        run(path, EMA, **options)
    assert [record["step"] for record in calls(path, "log")] == [2, 4, 5, 6]
    run(path, EMA, **options)
    logged = timeless(calls(path, "log"))
    assert logged == figures(path) and [record["step"] for record in logged] == [2, 4, 5, 6, 8, 10]
    assert logged[0].keys() == {"step", "train/step_loss", "train/step_lr"}
    assert {"train/loss", "train/lr", "test/top1", "test/ema_top5"} < logged[-1].keys()
    assert calls(path, "numbers") == [tensorboard.numbers_of(EMA)] and len(calls(path, "start")) == 2
    assert len(calls(path, "finish")) == 2 and list((path / "tensorboard").iterdir())
    remembered = json.loads((path / "trackers.json").read_text())
    assert remembered == {"ledger": {"project": "cifar100_tk", "id": None, "step": 10}}


def test_steps_that_are_trained_again_are_not_logged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"

    def failing(state: Any, batch: Any, *arguments: Any) -> Any:
        if batch.step == 8:
            raise KeyboardInterrupt  # The run's own handler of the signal is not asked: as good as a kill.
        return train_step(state, batch, *arguments)

    options: dict[str, Any] = {"log_with": ("ledger",), "log_every": 1, "checkpoint_every": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cifar100_tk.train.train_step", failing)
        run(path, **options)
    assert [record["step"] for record in calls(path, "log")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert status(path)["status"] == "running" and not (path / "tensorboard").exists()
    run(path, **options)
    assert timeless(calls(path, "log")) == figures(path)
    assert [record["step"] for record in calls(path, "log")] == list(range(1, 11))


def test_a_tracker_that_fails_costs_a_warning_and_gets_what_it_missed_when_the_run_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    ring_at[:] = [7]
    options: dict[str, Any] = {"log_with": ("ledger", "tensorboard"), "log_every": 2, "eval_every": 1}
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Ledger, "broken", True)
        run(path, EMA, **options)
    printed = capsys.readouterr().out
    warning = "  note           ledger failed (no route to the ledger); the run continues without it\n"
    assert printed.count(warning) == printed.count("ledger failed") == 1
    run(path, EMA, **options)
    assert timeless(calls(path, "log")) == figures(path) and len(calls(path, "numbers")) == 1
    assert "failed" not in capsys.readouterr().out


def test_a_tracker_that_fails_in_the_middle_leaves_the_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(line: dict[str, float]) -> None:
        monkeypatch.setattr(Ledger, "broken", True)

    path, ended = tmp_path / "run", list[str]()
    monkeypatch.setattr(Ledger, "finish", lambda ledger: ended.append(ledger.name))
    train(TINY, output_dir=path, log_with=("ledger",), log_every=2, quiet=True, on_epoch_end=breaking)
    assert [record["step"] for record in calls(path, "log")] == [2, 4, 5]
    assert status(path)["status"] == "finished" and len(lines(path)) == 2
    assert json.loads((path / "trackers.json").read_text())["ledger"]["step"] == 5
    assert capsys.readouterr().out.count("ledger failed (no route to the ledger)") == 1
    assert ended == ["ledger"]  # Once, when it failed: left active, it would take in the process's next run.


def test_a_tracker_that_is_added_later_gets_the_earlier_epochs(tmp_path: Path) -> None:
    path = tmp_path / "run"
    ring_at[:] = [7]
    with pytest.raises(StoppedError):
        run(path, EMA, log_with=("none",), eval_every=1, log_every=2)
    assert not (path / "tensorboard").exists() and not (path / "trackers.json").exists()
    run(path, EMA, log_with=("ledger",), project_name="mine", eval_every=1, log_every=2)
    assert timeless(calls(path, "log", "mine")) == figures(path) and len(calls(path, "log", "mine")) == 6


def test_a_tracker_that_cannot_continue_gets_the_whole_curve_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Accelerate's own trackers whose runs are not continued.
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", Ledger)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.AIM, LoggerType.TENSORBOARD])
    path = tmp_path / "run"
    ring_at[:] = [7]
    options: dict[str, Any] = {"log_with": ("aim",), "log_every": 2, "eval_every": 1}
    with pytest.raises(StoppedError):
        run(path, EMA, **options)
    before = len(calls(path, "log"))
    run(path, EMA, **options)
    assert timeless(calls(path, "log")[before:]) == figures(path) and len(calls(path, "numbers")) == 2


def test_a_dry_run_tells_no_tracker_and_shows_which_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(TINY, RunOptions(output_dir=tmp_path / "run", log_with=("ledger", "tensorboard"), dry_run=True))
    assert "  logs to        ledger, tensorboard\n" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_accelerate_gets_each_tracker_once() -> None:
    first, second = trackers_of(("wandb", "tensorboard", "wandb")) or []
    assert isinstance(first, RunTracker) and first.name == "wandb" and second == "tensorboard"
    assert first.tracker is None and trackers_of(("none",)) is None


@pytest.fixture
def missing() -> Iterator[str]:
    """One of Accelerate's trackers that is not installed here."""
    available = {str(name) for name in tracking.get_available_trackers()}
    found = [name for name in LoggerType.list() if name not in available | {"all"}]
    if not found:
        pytest.skip("every tracker is installed")
    yield found[0]


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(missing: str) -> None:
    package = missing.replace("_", "-")
    with pytest.raises(
        ConfigError,
        match=rf"^--log-with {missing} needs a package that is not installed \(installed: .*tensorboard.*, ledger\); "
        rf"pip install {package}$",
    ):
        RunOptions(log_with=("tensorboard", missing))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("wandbb",), r"^--log-with wandbb is not a tracker; give tensorboard, aim, .*, or none \(installed: .*\)\.$"),
        ((), r"^--log-with names no tracker; give tensorboard, aim, comet_ml, mlflow, wandb, .*, or none\.$"),
        (
            ("none", "wandb"),
            r"^--log-with none wandb: none excludes other trackers; leave it out, or the others\.$",
        ),
    ],
)
def test_what_is_not_a_tracker_is_refused(names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RunOptions(log_with=names)


def test_the_package_that_is_missing_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a tracker"):
        train(TINY, output_dir=tmp_path / "run", log_with=("tensorbored",))
    assert list(tmp_path.iterdir()) == []
