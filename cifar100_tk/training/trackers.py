"""Trackers beside TensorBoard, such as W&B and MLflow: Accelerate's own, continued by a resume, and never the end of a run."""

from __future__ import annotations

import re
import sys
import textwrap
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from tqdm import tqdm

from cifar100_tk.errors import ConfigError
from cifar100_tk.progress import YELLOW, style
from cifar100_tk.runs.metrics_files import read_lines
from cifar100_tk.storage import atomic
from cifar100_tk.storage.json_files import Json, read_or_nothing, to_bytes

TENSORBOARD = "tensorboard"
NONE = "none"
FILE = "trackers.json"
"""The file in a run folder that says under which id each tracker knows the run, and the last step that it was given."""
CONTINUED = ("wandb", "mlflow", "trackio")
"""Accelerate's trackers whose runs are continued; with the others a run that resumes starts anew, with the whole curve."""
NOT_LOGGED = ("epoch", "step", "seconds")
"""Keys of metrics.jsonl and steps.jsonl that are not figures of the training."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError unless every tracker of --log-with is known and installed, or the only name is `none`."""
    known = [name for name in LOGGER_TYPE_TO_CLASS if name != TENSORBOARD]
    choices = f"give tensorboard, {', '.join(known)}, or none"
    if not names:
        raise ConfigError(f"--log-with names no tracker; {choices}.")
    if NONE in names and len(names) > 1:
        raise ConfigError(f"--log-with {' '.join(names)}: none excludes other trackers; leave it out, or the others.")
    # A recipe file may register a tracker of its own with Accelerate.
    own = [name for name in known if name not in LoggerType]
    installed = [*map(str, get_available_trackers()), *own]
    for name in names:
        if name not in (*LOGGER_TYPE_TO_CLASS, NONE):
            raise ConfigError(f"--log-with {name} is not a tracker; {choices} (installed: {', '.join(installed)}).")
        if name not in (*installed, NONE):
            raise ConfigError(
                f"--log-with {name} needs a package that is not installed (installed: {', '.join(installed)}); "
                f"pip install {name.replace('_', '-')}"
            )


def trackers_of(names: Sequence[str]) -> list[str | RunTracker] | None:
    """Return the trackers of --log-with as `Accelerator(log_with=...)` takes them."""
    return [name if name == TENSORBOARD else RunTracker(name) for name in dict.fromkeys(names) if name != NONE] or None


class RunTracker(GeneralTracker):  # type: ignore[misc]
    """One of Accelerate's trackers, for a run that may be resumed.

    It is given every step once: a step that it had before a kill is left out when it is trained again, and what it missed,
    because it was added or could not be reached, is made up for from the run's own files when the run is resumed. Its
    errors end the logging with a warning, never the run. Started on the main process only.
    """

    main_process_only = True
    requires_logging_directory = False

    def __init__(self, name: str) -> None:
        super().__init__(_blank=True)
        self.name = name
        self.step: int | None = None
        """The last step that it was given; None until it has the hyperparameters."""
        self._tracker: Any = None

    def attach(self, run: Path, project: str, numbers: Json) -> None:
        """Attach the tracker to a run. numbers: the hyperparameters, by name."""
        self.run, self.project, self.numbers = run, project, numbers
        found = read_or_nothing(run / FILE).get(self.name)
        continued = self.name in CONTINUED or self.name not in LoggerType
        found = found if continued and isinstance(found, dict) and found.get("project") == project else {}
        self.id: str | None = found.get("id")
        self.step = found.get("step")

    @property
    def tracker(self) -> Any:
        """The tracked run, as the tracker's own package has it; None unless it is being logged to."""
        return None if self._tracker is None else self._tracker.tracker

    def start(self) -> None:
        """Start the tracked run, or continue it, and log what it does not have yet."""
        if self.id is None and self.name == "wandb":
            self.id = uuid.uuid4().hex[:12]  # Of our choice, so that a run killed at any moment is found again.
            self._remember()
        with self._failing_alone():
            started = self._begin()
            if self.name == "trackio" and self.id not in (None, _id_of(started)):
                started.finish()  # Trackio continues the newest run of a name, and there is a newer one.
                self.id = self.step = None
                started = self._begin()
            self.id, self._tracker = self.id or _id_of(started), started
        if self._tracker is None:
            return
        self._remember()
        if self.step is None or self.name == "trackio":  # Trackio keeps only the newest configuration.
            with self._failing_alone():
                self._tracker.store_init_configuration(self.numbers)
                self.step = self.step or 0
        for record in _logged(self.run):
            self.log({name: value for name, value in record.items() if name not in NOT_LOGGED}, int(record["step"]))

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        """Log the figures of a step, unless the tracked run has them already."""
        if self._tracker is None or self.step is None or step is None or step <= self.step:
            return
        # Before it is logged: after a kill in between, a point is missing rather than there twice.
        before, self.step = self.step, step
        self._remember()
        with self._failing_alone():
            self._tracker.log(values, step=step, **options)
        if self._tracker is None:
            self.step = before
            self._remember()

    def finish(self) -> None:
        """End the tracked run, after what was logged has been delivered."""
        if self._tracker is not None:
            with self._failing_alone("its last points may be missing there"):
                self._tracker.finish()
        self._tracker = None

    def _begin(self) -> Any:
        """Start Accelerate's tracker, each of which has its own way to name the run and to continue it."""
        name, kind = _run_name(self.run), LOGGER_TYPE_TO_CLASS[self.name]
        settings: dict[str, Json] = {
            "wandb": {"name": name, "id": self.id, "resume": "allow", "reinit": "finish_previous"},
            "mlflow": {"run_name": name, "run_id": self.id},
            "trackio": {"name": name, "resume": "must" if self.id else "never"},
            "swanlab": {"experiment_name": name},
            "clearml": {"task_name": name, "reuse_last_task_id": False},
            "dvclive": {"dir": str(self.run / "dvclive")},
        }
        folder = [str(self.run)] if kind.requires_logging_directory else []
        tracker = kind(self.project, *folder, **settings.get(self.name, {}))
        tracker.start()
        return tracker

    def _remember(self) -> None:
        entry = {"project": self.project, "id": self.id, "step": self.step}
        path = self.run / FILE
        atomic.write_file(path, to_bytes(read_or_nothing(path) | {self.name: entry}))

    @contextmanager
    def _failing_alone(self, consequence: str = "the run continues without it") -> Iterator[None]:
        """Turn any error of the tracker inside the block into a warning, after which nothing is logged to it."""
        try:
            yield
        except Exception as error:  # Each package has its own errors, for a server that is gone as for a wrong key.
            failed, self._tracker = self._tracker, None
            if failed is not None:
                with suppress(Exception):  # Left active, it would take in the process's next run.
                    failed.finish()
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = textwrap.shorten(said, 150, placeholder=" ...").rstrip(".")
            tqdm.write(style(f"  note           {self.name} failed ({reason}); {consequence}", YELLOW), sys.stdout)
            sys.stdout.flush()


def _run_name(run: Path) -> str:
    """Return the name of a run: that of its folder, and for a seed of several also that of the folder above.

    >>> _run_name(Path("/runs/resnet50/seed-1")), _run_name(Path("/runs/shorter"))
    ('resnet50-seed-1', 'shorter')
    """
    path = run.resolve()
    return f"{path.parent.name}-{path.name}" if re.fullmatch(r"seed-\d+", path.name) else path.name


def _id_of(tracker: Any) -> str | None:
    """Return the id that a tracker gave to a run that it has just started."""
    if tracker.name == "mlflow":
        return str(tracker.tracker.info.run_id)
    return str(tracker.tracker.id) if tracker.name == "trackio" else None


def _logged(run: Path) -> list[dict[str, float]]:
    """Return what the run has logged so far, in the order of the steps."""
    records = [record for name in ("metrics.jsonl", "steps.jsonl") for record in read_lines(run / name, "step", [])]
    return sorted(records, key=lambda record: record["step"])
