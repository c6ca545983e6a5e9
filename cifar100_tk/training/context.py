"""The context of a run: signals, lost ranks, a full device, the status and lock of its folder, and saving on a stop."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from cifar100_tk.data import Split
from cifar100_tk.distributed.collectives import broadcast_json
from cifar100_tk.distributed.launch import start_accelerator, use_kernels, use_threads
from cifar100_tk.distributed.memory import device_oom_as_error
from cifar100_tk.distributed.signals import Interrupted, Signals, catch_signals
from cifar100_tk.distributed.watchdog import Watch, watch_peers
from cifar100_tk.errors import DiskError, NotFiniteError, StoppedError
from cifar100_tk.recipe import Recipe
from cifar100_tk.runs.extension import earlier_lengths
from cifar100_tk.runs.lengths import Earlier
from cifar100_tk.runs.run_config import run_config
from cifar100_tk.runs.run_folder import validate_run_dir
from cifar100_tk.storage.json_files import Json
from cifar100_tk.training.open_run import OnEpochEnd, OpenRun, on_main
from cifar100_tk.training.plan import Plan, RunOptions, open_splits
from cifar100_tk.training.resume import resume
from cifar100_tk.training.state import TrainState
from cifar100_tk.training.teacher import Teacher
from cifar100_tk.training.trackers import trackers_of


class RunContext:
    """Protects one run from start to end; `with RunContext.enter(...) as ctx` is entered once.

    A run has three phases. During setup there is nothing to lose, so a signal ends it at once. From `open_run` on, leaving
    the block saves the run or marks it as failed, and releases its folder. During a training step, an out-of-memory error
    names the micro-batch that fits.
    """

    def __init__(
        self, options: RunOptions, name: str, accelerator: Accelerator, signals: Signals, start_time: float
    ) -> None:
        self.options, self.name, self.accelerator, self.signals = options, name, accelerator, signals
        self.start_time = start_time
        self.output_dir = output_dir(options, name)
        self.watch = Watch("")
        self.run: OpenRun | None = None
        self.earlier: tuple[Earlier, ...] = ()
        """The lengths that the run had before it was extended."""

    @classmethod
    @contextmanager
    def enter(cls, options: RunOptions, name: str) -> Iterator[RunContext]:
        """Start Accelerate and protect the block. Every rank takes part, and waits for the others at the end.

        Raises a CifarError for everything that a user can fix.
        """
        start_time = time.perf_counter()
        with catch_signals() as signals, device_oom_as_error():
            accelerator = start_accelerator(
                output_dir(options, name),
                timeout_minutes=options.timeout_minutes,
                precision=options.precision,
                log_with=trackers_of(options.log_with),
            )
            use_threads(accelerator.device, options.threads)
            use_kernels(deterministic=options.deterministic)
            ctx = cls(options, name, accelerator, signals, start_time)
            try:
                then = "run the same command again to start over"
                with device_oom_as_error(), watch_peers(accelerator, options.timeout_minutes, then) as ctx.watch:
                    yield from ctx._stopping()
                    accelerator.wait_for_everyone()
            except Exception as error:
                ctx._mark_failed(error)
                raise
            finally:
                ctx._close()

    def _stopping(self) -> Iterator[RunContext]:
        """Save the run when the processes agree to stop, and name the micro-batch that fits when a step runs out of memory."""
        try:
            yield self
        except Interrupted:
            assert self.run is not None
            raise self.run.stop() from None
        except RuntimeError:
            with self.run.step_fits() if self.run and self.run.in_step else contextlib.nullcontext():
                raise
        finally:
            if self.run is not None:
                self.run.close()

    def _mark_failed(self, error: Exception) -> None:
        if self.run is None or self.run.folder is None or isinstance(error, StoppedError):
            return
        with contextlib.suppress(DiskError):  # The first error is the one that the user must read.
            images = {"images": error.images} if isinstance(error, NotFiniteError) else {}
            self.run.folder.set_status("failed", step=self.run.state.step, reason=str(error), **images)

    def _close(self) -> None:
        if (
            self.accelerator.is_main_process
        ):  # Even if the run failed to open: a tracked run left active takes in the next one.
            for tracker in self.accelerator.trackers:
                with contextlib.suppress(OSError):  # Each epoch's report has been written, or its failure was reported.
                    tracker.finish()
        if self.run is not None and self.run.folder is not None:
            self.run.folder.lock.release()

    def at_its_length(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the epochs of --extend-to, and remember those that the run had before. Every rank takes part."""
        extend_to = self.options.extend_to
        found: list[Earlier] = []
        if self.options.contact_sheet is None:
            self.on_main(lambda: found.extend(earlier_lengths(self.output_dir, recipe.epochs, extend_to)))
        agreed = broadcast_json(self.accelerator, [dataclasses.astuple(each) for each in found])
        self.earlier = tuple(Earlier(*each) for each in agreed)
        if extend_to is None and not self.earlier:
            return recipe
        # A curve of reference is of a run that had one length from its start.
        return dataclasses.replace(recipe, epochs=extend_to or recipe.epochs, reference=())

    def open_splits(self, recipe: Recipe) -> tuple[Split, Split]:
        """Return the training split and the evaluation split. Every rank takes part."""
        if not self.options.previews:
            # Reject an unusable folder before the long work.
            written = run_config(recipe, self.options, earlier=self.earlier)
            validate_run_dir(self.output_dir, written, self.options.resume)
        return open_splits(recipe.data, self.accelerator)

    def open_teacher(self, recipe: Recipe, train_split: Split) -> Teacher | None:
        """Return the network that the recipe learns from, or None without distillation. Every rank takes part."""
        if recipe.distillation is None:
            return None
        return Teacher.open(recipe.distillation, train_split.class_names, recipe.normalize, self.accelerator)

    def run_config(self, plan: Plan, state: TrainState, eval_split: Split) -> Json:
        """Return the content of the run's recipe.json."""
        teacher = None if state.teacher is None else state.teacher.identity
        splits = plan.pipeline.split, eval_split
        pretrained, earlier = state.pretrained, plan.earlier
        return run_config(plan.recipe, plan.options, *splits, teacher=teacher, pretrained=pretrained, earlier=earlier)

    def on_main(self, write: Callable[[], object]) -> None:
        """Call a function on the main process; its error is raised on every process. Every rank takes part."""
        on_main(self.accelerator, write)

    def open_run(
        self, plan: Plan, state: TrainState, eval_split: Split, on_epoch_end: OnEpochEnd | None = None
    ) -> OpenRun:
        """Open a new or an unfinished run, and restore its newest checkpoint. Every rank takes part.

        on_epoch_end: called on the main process with the line of each epoch.
        """
        self.signals.at_once = False  # From here on there is something to lose.
        self.watch.then = "run the same command again to resume from the last checkpoint"
        state.start_time = self.start_time
        written = self.run_config(plan, state, eval_split)
        folder = resume(plan, self.output_dir, written, state)
        self.run = OpenRun(plan, state, eval_split, self.signals, folder, on_epoch_end)
        self.run.poll()
        return self.run


def output_dir(options: RunOptions, name: str) -> Path:
    """Return the folder of a run."""
    return options.output_dir or Path("runs") / name
