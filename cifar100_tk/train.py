"""main(recipe): the command line of every recipe, the plan it prints, and the training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import tyro
from accelerate import Accelerator, PartialState

from cifar100_tk import atomic, board, failpoint
from cifar100_tk.checkpoint import CheckpointManager, Tensors
from cifar100_tk.control import Agreement, Interrupted, NotFinite, Signals, catch_signals
from cifar100_tk.data import Split
from cifar100_tk.environment import environment
from cifar100_tk.errors import (
    CifarError,
    DiskError,
    NotFiniteError,
    StoppedError,
    end_recipes_with_sentence,
    exit_with_sentence,
)
from cifar100_tk.evaluation import evaluate, reduce_sum
from cifar100_tk.launch import raise_everywhere, start_accelerator, use_kernels, use_threads
from cifar100_tk.memory import full_device_is_a_sentence, largest_piece, out_of_memory_is_a_sentence
from cifar100_tk.metrics import Metrics
from cifar100_tk.outcome import Outcome, finish, measure_model, measured_before
from cifar100_tk.peers import watch_peers
from cifar100_tk.plan import Plan, RunOptions, open_splits
from cifar100_tk.progress import Progress, duration, percent
from cifar100_tk.recipe import Recipe
from cifar100_tk.reference import comparable
from cifar100_tk.resume import resume
from cifar100_tk.run_folder import RunFolder, check_run, noted, outlook
from cifar100_tk.seeds import train_seeds
from cifar100_tk.sheet import contact_sheet
from cifar100_tk.state import MAX_OVERFLOWS, TrainState

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """A recipe's numbers and the run's options, as the command line gives them."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    options: Annotated[RunOptions, tyro.conf.arg(name="")]


def main(recipe: Recipe) -> None:
    """Train a recipe as the command line says, and end the process with the exit code that fits."""
    program = Path(sys.argv[0]).name
    with exit_with_sentence(program):
        command = tyro.cli(
            Command,
            default=Command(recipe, RunOptions()),
            description=sys.modules["__main__"].__doc__,
            config=(tyro.conf.AvoidSubcommands,),
        )
        numbers, options, name = command.recipe, command.options, Path(program).stem
        if not comparable(numbers, recipe):
            numbers = dataclasses.replace(numbers, reference=())
        if options.seeds == 1:
            train(numbers, options, name)
        else:
            train_seeds(train, numbers, options, name)
        PartialState().destroy_process_group()


def train(recipe: Recipe, options: RunOptions, name: str = "run") -> Metrics | None:
    """Train a recipe once. Returns what the model scores after the last epoch, or None for a dry run.

    Raises a CifarError for everything that a user can mend. All processes call it.
    """
    with catch_signals() as signals, full_device_is_a_sentence():
        return _train(recipe, options, name, signals)


def _train(recipe: Recipe, options: RunOptions, name: str, signals: Signals) -> Metrics | None:
    started = time.perf_counter()
    output_dir = options.output_dir or Path("runs") / name
    accelerator = start_accelerator(output_dir, timeout_minutes=options.timeout_minutes)
    use_threads(accelerator.device, options.threads)
    use_kernels(deterministic=options.deterministic)
    with watch_peers(accelerator, options.timeout_minutes, "the same command starts again"):
        if options.contact_sheet is None and not options.dry_run:  # Neither writes anything there.
            # A folder that may not be written to is known before the long work.
            check_run(output_dir, noted(recipe, options), options.resume)
        train_split, eval_split = open_splits(recipe.data, accelerator)
        written = noted(recipe, options, train_split, eval_split)
        plan = Plan.of(recipe, options, accelerator, train_split)
        num_classes = len(train_split.class_names)
        state = TrainState.build(
            recipe, accelerator, num_classes, compile_model=plan.compile, sync_batchnorm=options.sync_batchnorm
        )
        if options.micro_batch == "auto":
            piece = largest_piece(accelerator, state.net, recipe.loss, num_classes, plan.micro_batch)
            plan = dataclasses.replace(plan, micro_batch=piece)
        if accelerator.is_main_process:
            num_parameters = sum(p.numel() for p in state.net.parameters())
            print(plan.describe(num_parameters, eval_split, output_dir, name), flush=True)
            if options.dry_run:
                print(outlook(output_dir, written, options.resume), flush=True)
        if options.contact_sheet is not None and accelerator.is_main_process:
            _draw(plan, options.contact_sheet)
        if options.dry_run or options.contact_sheet is not None:
            accelerator.wait_for_everyone()
            return None
    state.begun = started
    signals.at_once = False  # From here on there is something to lose.
    run = None
    try:
        with full_device_is_a_sentence():
            then = "the same command goes on from the last checkpoint"
            with watch_peers(accelerator, options.timeout_minutes, then):
                run = resume(plan, output_dir, written, state)
                metrics = _loop(plan, state, run, signals, eval_split)
            _on_main(accelerator, run, lambda run: finish(run, plan, state, metrics, train_split.class_names))
    except Exception as error:
        if run is not None and not isinstance(error, StoppedError):
            with contextlib.suppress(DiskError):  # What went wrong first is what the user must read.
                pictures = {"pictures": error.pictures} if isinstance(error, NotFiniteError) else {}
                run.set_status("failed", step=state.step, reason=str(error), **pictures)
        raise
    finally:
        if run is not None:
            with contextlib.suppress(OSError):  # Each epoch's report has been written, or has failed and said so.
                board.writer(accelerator).close()
            run.lock.release()
    accelerator.wait_for_everyone()
    return metrics


def _draw(plan: Plan, path: Path) -> None:
    """Draw this process's share of the first batch."""
    batch = next(iter(plan.pipeline.batches(0, 1)))
    names = plan.pipeline.split.class_names
    buffer = io.BytesIO()
    contact_sheet(batch, plan.recipe.normalize, names).save(buffer, "PNG")
    atomic.write_file(path, buffer.getvalue())
    print(f"  drawn to       {path}", flush=True)


def _loop(plan: Plan, state: TrainState, run: RunFolder | None, signals: Signals, eval_split: Split) -> Metrics:
    """Train to the last step. Returns the last evaluation, of the weights that are saved as the model."""
    accelerator, options, order = plan.accelerator, plan.options, plan.pipeline.order
    progress = Progress(plan.num_steps, state.step, silent=not accelerator.is_main_process)
    agreement = Agreement(accelerator)
    metrics: Metrics | None = None
    losses: list[torch.Tensor] = []
    manager = None
    if run is not None:
        background, every = accelerator.device.type == "cuda", options.checkpoint_every
        manager = CheckpointManager(
            run.checkpoints, keep=options.keep, async_save=background, every_epochs=every, saved_step=state.step
        )

    def poll() -> None:
        """Every rank takes part."""
        if agreement.anyone(signals.received is not None):
            raise Interrupted

    try:
        poll()
        if state.epoch_loss and state.step % order.steps_per_epoch == 0:
            # The run was stopped after the last step of an epoch, before its report.
            metrics = _end_epoch(plan, state, run, eval_split, progress, poll)
        clock, seen, compiling = time.perf_counter(), 0, plan.compiles
        for batch in plan.pipeline.batches(state.step, plan.num_steps):
            num_classes = batch.targets.shape[1]
            with out_of_memory_is_a_sentence(accelerator, state.net, plan.recipe.loss, num_classes, plan.micro_batch):
                loss, finite = state.train_step(batch, plan.lr(batch.step), plan.micro_batch)
            failpoint.reach(f"step-{state.step:08d}.done")
            if batch.step == 0:
                _show(accelerator, run, board.show_pictures, plan, batch)
            losses.append(loss)
            seen += plan.recipe.batch_size
            progress.step(seen / (time.perf_counter() - clock))
            ends_epoch = (batch.step + 1) % order.steps_per_epoch == 0
            if (
                compiling and not ends_epoch
            ):  # The network is compiled in the first step, which says nothing of the speed.
                loss.item()  # Waits for the device.
                progress.note(f"compiled, with the first step, in {duration(time.perf_counter() - clock)}")
                clock, seen = time.perf_counter(), 0
            compiling = False
            flags = agreement.exchange(batch.step, signals.received is not None, loss, finite, now=ends_epoch)
            if flags.not_finite:
                raise _not_finite(flags.not_finite, plan)
            if ends_epoch or flags.stop:
                state.epoch_loss += _summed(losses, accelerator)
                state.images_per_second = seen / (time.perf_counter() - clock)
                losses = []
            if flags.stop:
                raise Interrupted
            if ends_epoch:
                metrics = _end_epoch(plan, state, run, eval_split, progress, poll)
                _save(plan, state, manager, last=state.step == plan.num_steps)
                clock, seen = time.perf_counter(), 0
        metrics = metrics or measured_before(plan, run, eval_split)
        if metrics is None:
            outcome = measure_model(plan, state, eval_split, poll)
            _on_main(accelerator, run, outcome.write)
            metrics = outcome.metrics
        return metrics
    except Interrupted:
        _save(plan, state, manager, last=True)
        raise _stopped(run, state, signals) from None
    finally:
        progress.close()
        if manager is not None:
            with contextlib.suppress(DiskError):  # Nothing is written when the folder is no longer locked.
                manager.wait()


def _end_epoch(
    plan: Plan, state: TrainState, run: RunFolder | None, split: Split, progress: Progress, poll: Callable[[], None]
) -> Metrics | None:
    """Evaluate if it is time to, and report the epoch. Returns what the model scores if it is the last. Every rank takes part."""
    steps_per_epoch, epochs = plan.pipeline.order.steps_per_epoch, plan.recipe.epochs
    epoch = state.step // steps_per_epoch
    # The last evaluation keeps what it says of every picture; its figures are the epoch's.
    outcome = measure_model(plan, state, split, poll) if epoch == epochs else None
    record = {
        "train/loss": state.epoch_loss / steps_per_epoch,
        "train/lr": plan.lr(state.step - 1),
        "images_per_second": state.images_per_second,
    }
    remark, band = None, plan.band(epoch, split.name)
    if epoch % plan.options.eval_every == 0 or outcome or band:
        metrics = _evaluated(plan, state, split, outcome, poll)
        record |= _scalars(metrics, split.name)
        remark = band and band.remark(metrics["raw" if state.ema is None else "ema"].top1)
    if outcome:
        _on_main(plan.accelerator, run, outcome.write)
    _on_main(plan.accelerator, run, lambda run: _report(run, plan, progress, state, record))
    if remark:
        progress.note(remark)
    if outcome:
        _show(plan.accelerator, run, board.show_result, state.step, outcome.result, split)
    state.epoch_loss = 0.0
    return outcome.metrics if outcome else None


def _on_main(accelerator: Accelerator, main_only: T | None, write: Callable[[T], object]) -> None:
    """Let the main process write; an error there stops every process. Every rank takes part.

    main_only: what is written with, None on every other process.
    """
    error: CifarError | None = None
    if main_only is not None:
        try:
            write(main_only)
        except CifarError as caught:
            error = caught
        except OSError as caught:
            error = atomic.disk_error(caught, Path(accelerator.logging_dir), 0)
    raise_everywhere(accelerator, error)


def _summed(losses: list[torch.Tensor], accelerator: Accelerator) -> float:
    """Return the sum over steps of the mean loss over processes. Every rank takes part."""
    local = torch.stack(losses).cpu().double().sum() if losses else torch.zeros((), dtype=torch.float64)
    total: float = reduce_sum(accelerator, local).item() / accelerator.num_processes
    return total


def _evaluated(
    plan: Plan, state: TrainState, split: Split, outcome: Outcome | None, poll: Callable[[], None]
) -> dict[str, Metrics]:
    """Measure the raw weights, and their average if there is one. Every rank takes part.

    outcome: what is known of the weights that are saved.
    """
    nets = {"raw": state.net} | ({} if state.ema is None else {"ema": state.ema.module})
    options: dict[str, Any] = {"limit_batches": plan.options.limit_eval_batches, "between_batches": poll}
    return {
        which: outcome.metrics
        if outcome and net is state.measured
        else evaluate(net, split, plan.recipe.normalize, accelerator=plan.accelerator, **options)
        for which, net in nets.items()
    }


def _scalars(metrics: dict[str, Metrics], split: str) -> dict[str, float]:
    """Name the figures as metrics.jsonl and TensorBoard do: test/top1 for the raw weights, test/ema_top1 for the average."""
    return {
        f"{split}/{'' if which == 'raw' else 'ema_'}{key}": value
        for which, measured in metrics.items()
        for key, value in asdict(measured).items()
        if key != "num_images"
    }


def _show(accelerator: Accelerator, run: RunFolder | None, show: Callable[..., None], *what: Any) -> None:
    """Let the main process show something in TensorBoard. Every rank takes part."""
    _on_main(accelerator, run, lambda _: show(board.writer(accelerator), *what))


def _report(run: RunFolder, plan: Plan, progress: Progress, state: TrainState, record: dict[str, float]) -> None:
    """Tell the screen, metrics.jsonl and TensorBoard about an epoch, with the same names. Only the main process does."""
    epoch, epochs, step = state.step // plan.pipeline.order.steps_per_epoch, plan.recipe.epochs, state.step
    run.log({"epoch": epoch, "step": step, "seconds": state.seconds} | record)
    plan.accelerator.log(record, step=step)
    spoken = {"top1": "top-1", "top5": "top-5"}
    figures = "".join(
        f"  {name.replace('/', ' ').replace(key, word)} {percent(value)}"
        for name, value in record.items()
        for key, word in spoken.items()
        if name.endswith(key)
    )
    head = f"epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {record['train/loss']:.4f}  lr {record['train/lr']:.3g}"
    progress.line(f"{head}  {record['images_per_second']:,.0f} images/s{figures}", step)


def _save(plan: Plan, state: TrainState, manager: CheckpointManager | None, *, last: bool) -> None:
    """Save a checkpoint on the main process, if one is due or it is the last. Every rank takes part."""

    def content() -> tuple[Mapping[str, Tensors], Mapping[str, Any]]:
        return state.tensors(), state.facts() | {"environment": environment(plan.accelerator, compiled=plan.compiles)}

    def save(manager: CheckpointManager) -> None:
        if last:
            manager.save_last(state.step, content)
        else:
            manager.save_if_due(state.step // plan.pipeline.order.steps_per_epoch, state.step, content)

    _on_main(plan.accelerator, manager, save)


def _stopped(run: RunFolder | None, state: TrainState, signals: Signals) -> StoppedError:
    name = signals.received.name if signals.received else "a signal to another process"
    if run is not None:
        run.set_status("stopped", step=state.step)
    return StoppedError(
        f"stopped by {name} after step {state.step:,}, everything is saved; the same command goes on from there."
    )


def _not_finite(found: NotFinite, plan: Plan) -> NotFiniteError:
    order = plan.pipeline.order
    pictures = np.concatenate(
        [dataclasses.replace(order, rank=rank).batch(found.step) for rank in found.ranks]
    ).tolist()
    shown = ", ".join(map(str, pictures[:8])) + (f" and {len(pictures) - 8:,} more" if len(pictures) > 8 else "")
    fp16 = plan.accelerator.scaler is not None
    tries = f", also with a loss scale halved {MAX_OVERFLOWS} times" * fp16
    bf16 = ", --mixed_precision bf16" * fp16
    return NotFiniteError(
        f"the loss or gradient is not finite at step {found.step:,} on rank {', '.join(map(str, found.ranks))} (learning rate "
        f"{plan.lr(found.step):.4g}, training pictures {shown}){tries}; checkpoints before it are untouched. A lower "
        f"--optimizer.lr, a longer warm-up{bf16} or --clip-grad-norm 1 usually helps, in another --output-dir.",
        pictures=pictures,
    )


end_recipes_with_sentence(main)
