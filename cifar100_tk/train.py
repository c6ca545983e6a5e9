"""main(recipe): the command line of every recipe, the plan it prints, and the training loop."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from accelerate import Accelerator

from cifar100_tk import atomic, checkpoint, model_folder
from cifar100_tk.control import Agreement, Signals, catch_signals
from cifar100_tk.data import Split
from cifar100_tk.errors import CifarError, DiskError, NotFiniteError, StoppedError, exit_with_sentence
from cifar100_tk.evaluation import evaluate, reduce_sum
from cifar100_tk.launch import device_name, raise_everywhere, start_accelerator, use_threads
from cifar100_tk.metrics import Metrics
from cifar100_tk.plan import Plan, RunOptions
from cifar100_tk.progress import Progress, duration, percent
from cifar100_tk.recipe import Recipe, to_json
from cifar100_tk.run_folder import RunFolder, check_run, open_run
from cifar100_tk.sheet import contact_sheet
from cifar100_tk.state import TrainState


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
        train(command.recipe, command.options, name=Path(program).stem)


def train(recipe: Recipe, options: RunOptions, *, name: str = "run") -> Metrics | None:
    """Train a recipe. Returns what the model scores after the last epoch, or None for a dry run.

    Raises a CifarError for everything that a user can mend. All processes call it.
    """
    started = time.perf_counter()
    output_dir = options.output_dir or Path("runs") / name
    accelerator = start_accelerator(output_dir)
    use_threads(accelerator.device, options.threads)
    written = to_json(recipe) | {"limit_train_batches": options.limit_train_batches}
    check_run(output_dir, written, options.resume)  # A folder that may not be written to is known before the long work.
    with accelerator.main_process_first():  # One prepares the data, the others find it done.
        train_split = recipe.data.open("train")
        # Without a held-out part test is watched; nothing is chosen by it, and the last epoch is what is reported.
        eval_split = recipe.data.open("holdout" if recipe.data.holdout else "test")
    plan = Plan.of(recipe, options, accelerator, train_split)
    state = TrainState.build(recipe, accelerator, len(train_split.class_names), compile_model=plan.compile)
    if accelerator.is_main_process:
        num_parameters = sum(p.numel() for p in state.net.parameters())
        print(plan.describe(num_parameters, eval_split, output_dir, name), flush=True)
    if options.contact_sheet is not None and accelerator.is_main_process:
        _draw(plan, options.contact_sheet)
    if options.dry_run or options.contact_sheet is not None:
        return None
    run = _open(accelerator, output_dir, written, options, state)
    try:
        with catch_signals() as signals:
            metrics = _loop(plan, state, run, signals, eval_split)
        if run is not None:
            _finish(run, state, recipe, metrics, train_split.class_names, time.perf_counter() - started)
    except Exception as error:
        if run is not None and not isinstance(error, StoppedError):
            with contextlib.suppress(DiskError):  # What went wrong first is what the user must read.
                run.set_status("failed", step=state.step, reason=str(error))
        raise
    finally:
        if run is not None:
            run.lock.release()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return metrics["ema" if recipe.ema else "raw"]


def _draw(plan: Plan, path: Path) -> None:
    """Draw this process's share of the first batch."""
    batch = next(iter(plan.pipeline.batches(0, 1)))
    names = plan.pipeline.split.class_names
    buffer = io.BytesIO()
    contact_sheet(batch, plan.recipe.normalize, names).save(buffer, "PNG")
    atomic.write_file(path, buffer.getvalue())
    print(f"  drawn to       {path}", flush=True)


def _open(
    accelerator: Accelerator, path: Path, recipe: dict[str, Any], options: RunOptions, state: TrainState
) -> RunFolder | None:
    """Open the run folder on the main process, and bring every process to where its checkpoint is. Every rank takes part."""
    run, error = None, None
    if accelerator.is_main_process:
        try:
            run = open_run(path, recipe, options.resume)
            for complaint in run.complaints:
                print(f"  passed over     {complaint}", flush=True)
            if found := run.checkpoint:
                state.restore(found.step, found.tensors, found.facts)
                print(f"  goes on from   step {found.step:,}, {found.path}", flush=True)
            run.forget_after(state.step)
            run.set_status("running", step=state.step)
        except CifarError as caught:
            error = caught
    raise_everywhere(accelerator, error)
    state.share()
    accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": state.step + 1}})
    return run


def _loop(
    plan: Plan, state: TrainState, run: RunFolder | None, signals: Signals, eval_split: Split
) -> dict[str, Metrics]:
    """Train to the last step. Returns the last evaluation, of the raw weights and of their average if there is one."""
    accelerator, options, order = plan.accelerator, plan.options, plan.pipeline.order
    progress = Progress(plan.num_steps, state.step, silent=not accelerator.is_main_process)
    agreement = Agreement(accelerator)
    metrics: dict[str, Metrics] = {}
    losses: list[torch.Tensor] = []
    clock, seen = time.perf_counter(), 0
    for batch in plan.pipeline.batches(state.step, plan.num_steps):
        loss, finite = state.train_step(batch, plan.lr(batch.step), plan.micro_batch)
        losses.append(loss)
        seen += plan.recipe.batch_size
        progress.step(seen / (time.perf_counter() - clock))
        epoch, ends_epoch = order.epoch(batch.step) + 1, state.step % order.steps_per_epoch == 0
        flags = agreement.exchange(signals.received is not None, finite, now=ends_epoch)
        if flags.not_finite:
            raise _not_finite(batch.step, plan)
        if ends_epoch:
            mean_loss = (state.epoch_loss + _summed(losses, accelerator)) / order.steps_per_epoch
            images_per_second = seen / (time.perf_counter() - clock)
            record = {"train/loss": mean_loss, "train/lr": plan.lr(batch.step), "images_per_second": images_per_second}
            if epoch % options.eval_every == 0 or epoch == plan.recipe.epochs:
                metrics = _evaluated(plan, state, eval_split)
                record |= _scalars(metrics, eval_split.name)
            _report(run, accelerator, progress, epoch, state.step, plan.recipe.epochs, record)
            losses, state.epoch_loss = [], 0.0
        if flags.stop or (ends_epoch and epoch % options.checkpoint_every == 0) or state.step == plan.num_steps:
            _save(run, state, plan, state.epoch_loss + _summed(losses, accelerator))
        if flags.stop and state.step < plan.num_steps:
            progress.close()
            _stop(run, state, signals)
        if ends_epoch:
            clock, seen = time.perf_counter(), 0
    progress.close()
    return metrics or _evaluated(plan, state, eval_split)


def _summed(losses: list[torch.Tensor], accelerator: Accelerator) -> float:
    """Return the sum over steps of the mean loss over processes. Every rank takes part."""
    local = torch.stack(losses).cpu().double().sum() if losses else torch.zeros((), dtype=torch.float64)
    total: float = reduce_sum(accelerator, local).item() / accelerator.num_processes
    return total


def _evaluated(plan: Plan, state: TrainState, split: Split) -> dict[str, Metrics]:
    """Measure the raw weights, and their average if there is one. Every rank takes part."""
    nets = {"raw": state.net} | ({} if state.ema is None else {"ema": state.ema.module})
    limit = plan.options.limit_eval_batches
    return {
        which: evaluate(net, split, plan.recipe.normalize, accelerator=plan.accelerator, limit_batches=limit)
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


def _report(
    run: RunFolder | None,
    accelerator: Accelerator,
    progress: Progress,
    epoch: int,
    step: int,
    epochs: int,
    record: dict[str, float],
) -> None:
    """Tell the screen, metrics.jsonl and TensorBoard about an epoch, with the same names."""
    accelerator.log(record, step=step)
    if run is not None:
        run.log({"epoch": epoch, "step": step} | record)
    spoken = {"top1": "top-1", "top5": "top-5"}
    figures = "".join(
        f"  {name.replace('/', ' ').replace(key, word)} {percent(value)}"
        for name, value in record.items()
        for key, word in spoken.items()
        if name.endswith(key)
    )
    head = f"epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {record['train/loss']:.4f}  lr {record['train/lr']:.3g}"
    progress.line(f"{head}  {record['images_per_second']:,.0f} images/s{figures}", step)


def _save(run: RunFolder | None, state: TrainState, plan: Plan, epoch_loss: float) -> None:
    """Commit a checkpoint on the main process; an error there stops every process. Every rank takes part."""
    error = None
    if run is not None:
        try:
            checkpoint.save(
                run.checkpoints, state.step, state.tensors(), state.facts(epoch_loss), keep=plan.options.keep
            )
        except CifarError as caught:
            error = caught
    raise_everywhere(plan.accelerator, error)


def _stop(run: RunFolder | None, state: TrainState, signals: Signals) -> None:
    name = signals.received.name if signals.received else "a signal to another process"
    if run is not None:
        run.set_status("stopped", step=state.step)
    raise StoppedError(
        f"stopped by {name} after step {state.step:,}, everything is saved; the same command goes on from there."
    )


def _not_finite(step: int, plan: Plan) -> NotFiniteError:
    return NotFiniteError(
        f"the loss or gradient is not finite at step {step:,} (learning rate {plan.lr(step):.4g}); the last checkpoint is "
        "untouched. A lower --optimizer.lr, a longer --schedule.warmup-epochs or --clip-grad-norm 1 usually helps."
    )


def _finish(
    run: RunFolder,
    state: TrainState,
    recipe: Recipe,
    metrics: dict[str, Metrics],
    names: tuple[str, ...],
    seconds: float,
) -> None:
    """Write the model folder and the status, and say the result in one line. Only the main process does."""
    result = metrics["ema" if recipe.ema else "raw"]
    split = "holdout" if recipe.data.holdout else "test"
    pictures = f"{result.num_images:,} {split} pictures of {recipe.data.source}"
    conditions = f"{pictures}, after epoch {recipe.epochs}, seed {recipe.seed}"
    card = f"# {recipe.model.name}\n\nTop-1 {percent(result.top1)}, top-5 {percent(result.top5)} ({conditions}).\n"
    if not run.model.exists():
        model_folder.write(run.model, state.measured, names, recipe.normalize, card)
    run.set_status("finished", step=state.step, top1=result.top1, top5=result.top5, loss=result.loss)
    figures = f"top-1 {percent(result.top1)}, top-5 {percent(result.top5)}"
    print(f"{figures} on {conditions}; {duration(seconds)} on {device_name(state.accelerator)}")
    print(f"model in {run.model}; measure it again with: python -m cifar100_tk.eval {run.path}", flush=True)
