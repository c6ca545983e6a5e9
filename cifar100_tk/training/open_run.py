"""A run while it trains: the steps that all processes agree on, its reports and checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from cifar100_tk.data import Split
from cifar100_tk.distributed.collectives import raise_on_all_ranks
from cifar100_tk.distributed.environment import environment
from cifar100_tk.distributed.memory import oom_as_error
from cifar100_tk.distributed.signals import Interrupted, RankSync, Signals, StepStatus
from cifar100_tk.errors import CifarError, ConfigError, DiskError, NotFiniteError, StoppedError
from cifar100_tk.progress import Progress, Speed, duration
from cifar100_tk.runs.checkpoint_manager import CheckpointManager, Files
from cifar100_tk.runs.run_folder import RunFolder
from cifar100_tk.storage import atomic, failpoint
from cifar100_tk.training import tensorboard
from cifar100_tk.training.epoch_report import EpochReport
from cifar100_tk.training.loader import Batch, Batches
from cifar100_tk.training.plan import Plan
from cifar100_tk.training.state import MAX_OVERFLOWS, TrainState
from cifar100_tk.training.trackers import TENSORBOARD

OnEpochEnd = Callable[[dict[str, float]], object]
"""Called with the line that metrics.jsonl gets for an epoch."""


class OpenRun:
    """A run while it trains, on every process; only the main one holds its folder."""

    def __init__(
        self,
        plan: Plan,
        state: TrainState,
        eval_split: Split,
        signals: Signals,
        folder: RunFolder | None,
        on_epoch_end: OnEpochEnd | None = None,
    ) -> None:
        self.on_epoch_end = on_epoch_end
        self.plan, self.state, self.eval_split, self.signals, self.folder = plan, state, eval_split, signals, folder
        self.accelerator = plan.accelerator
        self.sync = RankSync(self.accelerator)
        self.progress = Progress(
            plan.num_steps, state.step, silent=not self.accelerator.is_main_process, quiet=plan.options.quiet
        )
        self.speed = Speed()
        self._logged: list[dict[str, float]] = []
        """The logged steps that are not yet in steps.jsonl."""
        self._last_loss = math.nan
        self.in_step = False
        """True during a training step."""
        self.paused = False
        """True at the end of an epoch once the result of its last step is known."""
        self._compiling = plan.compiles
        """True if the next step compiles the network, and so must not count for the speed."""
        self._batches: Batches | None = None
        self._reports: deque[EpochReport] = deque()
        """The epochs that have ended and whose last loss is not known yet, the oldest first."""
        self._late_error: CifarError | None = None
        """On the main process: an error that the others have not been told of yet."""
        self.manager: CheckpointManager | None = None
        if folder is not None:
            self.manager = CheckpointManager(
                folder.checkpoints,
                keep=plan.options.keep,
                async_save=self.accelerator.device.type == "cuda",
                every_epochs=plan.options.checkpoint_every,
                saved_step=state.step,
            )

    # Called by the training loop.

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the remaining steps; each starts a step."""
        self._batches = self.plan.pipeline.batches(self.state.step, self.plan.num_steps)
        self.speed.restart()
        for batch in self._batches:
            self.in_step = True
            yield batch

    def prefetch(self) -> None:
        """Start preparing the next batch while the step runs, where the device allows it."""
        self.in_step = False
        assert self._batches is not None
        self._batches.prefetch()
        self.in_step = True

    def end_step(self, batch: Batch, loss: Tensor, finite: Tensor) -> None:
        """Share a step's status with all processes, and act on theirs. Every rank takes part.

        loss: (), this process's. finite: () bool, whether loss and gradient are. Raises NotFiniteError if those of any
        process are not, and Interrupted if any process was told to stop; on a GPU a few steps later.
        """
        self.in_step = False
        failpoint.reach(f"step-{self.state.step:08d}.done")
        if batch.step == 0:
            self.show(tensorboard.show_images, self.plan, batch)
        ends_epoch = self.plan.ends_epoch(batch.step)
        wait = self._compiling or (ends_epoch and self._pauses_after(self.plan.epochs_done(batch.step + 1)))
        stop, failed = self.signals.received is not None, self._late_error is not None
        save = self._asks_to_save(batch.step)
        statuses = self.sync.all_reduce(batch.step, stop, loss, finite, wait=wait, save=save, failed=failed)
        self.paused = ends_epoch and (wait or any(status.save for status in statuses))
        for status in statuses:
            self._take(status)
        if any(status.failed for status in statuses):
            self.on_main(lambda _: None)  # Raises the main process's error on all.
        speed = self.speed.images_per_second or self.state.images_per_second
        self.progress.step(speed, self._last_loss, self.plan.lr(batch.step))
        if self._compiling and not ends_epoch:
            self.progress.note(f"compiled, with the first step, in {duration(self.speed.seconds)}")
            self.speed.restart()
        self._compiling = False
        if any(status.stop for status in statuses):
            raise Interrupted

    def save_if_due(self) -> None:
        """Save a checkpoint at the end of an epoch if one is due; the last epoch's always is. Every rank takes part."""
        if not self.paused:
            return
        self._save(last=self.state.step == self.plan.num_steps)
        self.speed.restart()

    def report(self, figures: dict[str, float], remark: str | None) -> None:
        """Report the epoch that just ended, as soon as its last loss is known. Every rank takes part.

        figures: the measured values, by their names in metrics.jsonl. remark: a line to print.
        """
        self._reports.append(EpochReport(self.state.step, figures, remark))
        if not self.sync.pending:
            self._write_report(self.on_main)

    def show(self, show: Callable[..., None], *arguments: Any) -> None:
        """Write to TensorBoard on the main process, if it is one of the trackers. Every rank takes part."""
        if TENSORBOARD in self.plan.options.log_with:
            self.on_main(lambda _: show(tensorboard.writer(self.accelerator), *arguments))

    def on_main(self, write: Callable[[RunFolder], object]) -> None:
        """Write to the run's folder on the main process; an error there stops every process. Every rank takes part."""

        def write_unless_failed() -> None:
            if self._late_error is not None:
                raise self._late_error
            if self.folder is not None:
                write(self.folder)

        on_main(self.accelerator, write_unless_failed)

    def poll(self) -> None:
        """Raise Interrupted if any process was told to stop. Every rank takes part."""
        failpoint.reach(f"step-{self.state.step:08d}.polled")
        if self.sync.any_rank(self.signals.received is not None):
            raise Interrupted

    # Called by the context.

    def stop(self) -> StoppedError:
        """Save everything, and return the error of a stopped run. Every rank takes part."""
        self.on_main(self._flush_steps)
        self._save(last=True)
        if self.folder is not None:
            self.folder.set_status("stopped", step=self.state.step)
        name = self.signals.received.name if self.signals.received else "a signal to another process"
        return StoppedError(
            f"stopped by {name} after step {self.state.step:,}, everything is saved; run the same command again to resume."
        )

    def close(self) -> None:
        """Release the batches and their workers, remove the bar, and wait for the last checkpoint."""
        self._batches = None
        self.progress.close()
        if self.manager is not None:
            with contextlib.suppress(DiskError):  # Nothing is written when the folder is no longer locked.
                self.manager.wait()

    def step_fits(self) -> contextlib.AbstractContextManager[None]:
        """Turn an out-of-memory error inside the block into a ConfigError that names the micro-batch that fits."""
        num_classes = len(self.plan.pipeline.split.class_names)
        return oom_as_error(self.state.workload(num_classes), self.plan.micro_batch)

    def _pauses_after(self, epoch: int) -> bool:
        """Return whether the host waits for the device at the end of an epoch, as every evaluation and checkpoint requires.

        This is what every process knows by itself; the main one asks for other checkpoints by `_asks_to_save`.
        """
        every = self.plan.options.checkpoint_every
        return self.plan.evaluates_after(epoch, self.eval_split.name) or (every is not None and epoch % every == 0)

    def _asks_to_save(self, step: int) -> bool:
        """Return whether to ask for a checkpoint at the end of the epoch that ends when this step's status is read.

        Only the main process asks: its clock decides, and all read what it decided at the same step.
        """
        read_at = step + self.sync.lag
        if self.manager is None or not self.plan.ends_epoch(read_at):
            return False
        return self.manager.is_due(self.plan.epochs_done(read_at + 1))

    def _save(self, *, last: bool) -> None:
        """Save a checkpoint on the main process, if one is due or it is the last. Every rank takes part."""
        plan, state = self.plan, self.state
        assert not self.sync.pending, "a step that may not be finite would be saved"

        def content() -> tuple[Files, Mapping[str, Any]]:
            now = environment(self.accelerator, compiled=plan.compiles)
            return state.tensors(), state.facts() | {"environment": now}

        def save(_: RunFolder) -> None:
            assert self.manager is not None
            if last:
                self.manager.save_last(state.step, content)
            else:
                self.manager.save_if_due(plan.epochs_done(state.step), state.step, content)

        self.on_main(save)

    def _take(self, status: StepStatus) -> None:
        """Count a step whose status is known. Every rank takes part, at the same step."""
        if status.not_finite:
            raise _not_finite_error(status, self.plan)
        self.state.epoch_loss += status.loss
        self._last_loss = status.loss
        self._log_step(status)
        self.speed.count(self.plan.recipe.batch_size)
        if self.plan.ends_epoch(status.step):
            self.state.images_per_second = self.speed.images_per_second
            self.speed.restart()
            if self._reports:
                self._write_report(self._write_late)

    def _log_step(self, status: StepStatus) -> None:
        """Log the loss of a step if it is its turn; the last step of an epoch is left to the epoch's report."""
        done = status.step + 1
        if self.folder is None or done % self.plan.options.log_every or self.plan.ends_epoch(status.step):
            return
        record = {"train/step_loss": status.loss, "train/step_lr": self.plan.lr(status.step)}
        self._logged.append({"step": done} | record)
        self._write_late(lambda _: self.accelerator.log(record, step=done))

    def _flush_steps(self, folder: RunFolder) -> None:
        """Write the logged steps to steps.jsonl, before a checkpoint that comes after them. Main process only."""
        folder.log_steps(self._logged)
        self._logged.clear()

    def _write_late(self, write: Callable[[RunFolder], object]) -> None:
        """Write to the run's folder on the main process; no process waits, and `end_step` raises an error later on all."""
        folder = self.folder
        if folder is not None and self._late_error is None:
            self._late_error = _error_of(lambda: write(folder), self.accelerator)

    def _write_report(self, on_main: Callable[[Callable[[RunFolder], object]], None]) -> None:
        """Write the oldest pending report by `on_main` or `_write_late`."""
        report = self._reports.popleft()
        seconds = self.state.seconds
        record = report.record(self.plan, self.state, seconds)

        def write(folder: RunFolder) -> None:
            self._flush_steps(folder)
            line.update(report.write(folder, self.plan, self.progress, record, seconds))

        line: dict[str, float] = {}
        on_main(write)
        if report.remark:
            self.progress.warn(report.remark)
        self.state.epoch_loss, self.state.reported_seconds = 0.0, seconds
        if line and self.on_epoch_end is not None:
            self.on_epoch_end(line)


def on_main(accelerator: Accelerator, write: Callable[[], object]) -> None:
    """Call a function on the main process; its error is raised on every process. Every rank takes part."""
    raise_on_all_ranks(accelerator, _error_of(write, accelerator) if accelerator.is_main_process else None)


def _error_of(write: Callable[[], object], accelerator: Accelerator) -> CifarError | None:
    """Call a function that writes. Returns its error for the user, or None."""
    try:
        write()
    except CifarError as error:
        return error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return ConfigError(f"{error.filename} is too long for a file name; give a shorter one.")
        return atomic.disk_error(error, Path(accelerator.logging_dir))
    return None


def _not_finite_error(status: StepStatus, plan: Plan) -> NotFiniteError:
    order, ranks = plan.pipeline.order, status.not_finite
    images = np.concatenate([dataclasses.replace(order, rank=rank).batch(status.step) for rank in ranks]).tolist()
    shown = ", ".join(map(str, images[:8])) + (f" and {len(images) - 8:,} more" if len(images) > 8 else "")
    fp16 = plan.accelerator.scaler is not None
    tries = f", also with a loss scale halved {MAX_OVERFLOWS} times" * fp16
    bf16 = ", --precision bf16" * fp16
    return NotFiniteError(
        f"the loss or gradient is not finite at step {status.step:,} on rank {', '.join(map(str, ranks))} (learning rate "
        f"{plan.lr(status.step):.4g}, training images {shown}){tries}; checkpoints before it are untouched. A lower "
        f"--optimizer.lr, a longer warm-up{bf16} or --clip-grad-norm 1 usually helps, in another --output-dir.",
        images=images,
    )
