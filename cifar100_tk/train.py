"""main(recipe): the command line of every recipe, the training loop and one training step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from accelerate import PartialState
from torch import Tensor

from cifar100_tk.cli.arguments import parse, print_about
from cifar100_tk.data import Split
from cifar100_tk.distributed.memory import find_micro_batch
from cifar100_tk.errors import exit_on_error, install_excepthook
from cifar100_tk.evaluation.metrics import Metrics
from cifar100_tk.progress import BOLD, DIM, style
from cifar100_tk.recipe import Recipe, comparable
from cifar100_tk.runs.run_folder import describe_resume
from cifar100_tk.storage import atomic
from cifar100_tk.training import tensorboard
from cifar100_tk.training.contact_sheet import draw_batch
from cifar100_tk.training.context import RunContext
from cifar100_tk.training.epoch_report import named_figures
from cifar100_tk.training.finalize import finish, keep_if_best, measure_model, measure_weights, measured_before
from cifar100_tk.training.loader import Batch
from cifar100_tk.training.open_run import OnEpochEnd, OpenRun
from cifar100_tk.training.plan import Plan, RunOptions, with_keywords
from cifar100_tk.training.seeds import train_seeds
from cifar100_tk.training.state import MAX_OVERFLOWS, TrainState


@dataclass(frozen=True)
class Command:
    """A recipe's numbers and the run's options, as the command line gives them."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    options: Annotated[RunOptions, tyro.conf.arg(name="")]


def main(recipe: Recipe, *, on_epoch_end: OnEpochEnd | None = None) -> None:
    """Train a recipe as the command line says, and end the process with the exit code that fits.

    on_epoch_end: called after each epoch, as by `train`.
    """
    program, script = Path(sys.argv[0]).name, vars(sys.modules["__main__"])
    if {"-h", "--help"} & set(sys.argv[1:]):
        print_about(script["__doc__"] or "")
    with exit_on_error(program):
        command = parse(
            lambda: tyro.cli(
                Command,
                default=Command(recipe, RunOptions()),
                prog=script.get("__command__"),  # Given by `cifar100-tk train`; else the script.
                description="",
                config=(tyro.conf.AvoidSubcommands,),
            )
        )
        numbers, options, name = command.recipe, command.options, Path(program).stem
        if not comparable(numbers, recipe):
            numbers = dataclasses.replace(numbers, reference=())
        train_once = functools.partial(train, on_epoch_end=on_epoch_end)
        if options.seeds == 1:
            train_once(numbers, options, name)
        else:
            train_seeds(train_once, numbers, options, name)
        PartialState().destroy_process_group()


def train(
    recipe: Recipe,
    options: RunOptions | None = None,
    name: str = "run",
    *,
    on_epoch_end: OnEpochEnd | None = None,
    **run_options: Any,
) -> Metrics | None:
    """Train a recipe once. Returns the model's metrics after the last epoch, or None for a dry run.

    options: the run options; or as keywords, such as output_dir="runs/first". name: of the run, as the plan prints it; the
    folder is runs/NAME unless `output_dir` says otherwise. on_epoch_end: called on the main process after each epoch with its
    line of metrics.jsonl, a new dict; an error in it ends the run, which can be resumed.
    Raises a CifarError for everything that a user can fix, and never ends the process. Every rank takes part.
    """
    options = with_keywords(options, run_options)
    with RunContext.enter(options, name) as ctx:
        recipe = ctx.at_its_length(recipe)
        train_split, eval_split = ctx.open_splits(recipe)
        plan = Plan.of(recipe, options, ctx.accelerator, train_split, ctx.earlier)
        num_classes = len(train_split.class_names)
        state = TrainState.build(
            recipe,
            ctx.accelerator,
            num_classes,
            compile_model=plan.compile,
            length=plan.pipeline.length,
            sync_batchnorm=options.sync_batchnorm,
            whitening_images=plan.whitening_images(),
            teacher=ctx.open_teacher(recipe, train_split),
        )
        if options.micro_batch == "auto":
            workload = state.workload(num_classes)
            micro_batch = find_micro_batch(workload, plan.micro_batch, compiled=plan.search_compiles)
            plan = dataclasses.replace(plan, micro_batch=micro_batch)
        show_plan(ctx, plan, state, eval_split)
        if options.previews:
            return None
        run = ctx.open_run(plan, state, eval_split, on_epoch_end)
        metrics = None
        if state.epoch_loss and plan.ends_epoch(state.step - 1):
            metrics = end_epoch(run)  # The run was stopped between the last step of an epoch and its report.
        for batch in run.batches():
            state.set_epoch(plan.epochs_done(batch.step))
            step, micro_batch = batch.step, plan.micro_batch
            loss, finite = train_step(state, batch, plan.lr(step), micro_batch, run.prefetch, plan.sam_images(step))
            run.end_step(batch, loss, finite)
            if plan.ends_epoch(batch.step):
                metrics = end_epoch(run)
        return end_run(run, metrics)


def train_step(
    state: TrainState,
    batch: Batch,
    lr: float,
    micro_batch: int,
    prefetch: Callable[[], None] = lambda: None,
    sam_images: int = 0,
) -> tuple[Tensor, Tensor]:
    """Do one optimizer step. Returns this process's mean loss in nats and whether it and the gradient are finite, both ().

    lr: the step's learning rate. micro_batch: images per forward pass; the gradients add up to that of the whole batch,
    but BatchNorm sees one micro-batch at a time. prefetch: starts preparing the next batch. sam_images: this process's
    images that SAM moves the weights with first; 0 for a plain step.
    An fp16 step that overflows is repeated with the smaller loss scale, and counts once; only BatchNorm's running
    statistics then see the batch twice. A step that overflows MAX_OVERFLOWS times changes no weights, and is reported as
    not finite.
    """
    state.set_lr(lr)
    for _ in range(MAX_OVERFLOWS):
        with _perturbed(state, batch, sam_images, micro_batch):
            loss = add_gradient(state, batch, len(batch.images), micro_batch)
        finite = loss.isfinite() & state.clip_gradient().isfinite()
        prefetch()  # Here because fp16 waits for the device in the next line, to check for an overflow.
        state.optimizer.step()
        state.optimizer.zero_grad()
        if not state.accelerator.optimizer_step_was_skipped:
            state.complete_step(batch.step)
            return loss, finite
    return loss, torch.zeros_like(finite)


def add_gradient(state: TrainState, batch: Batch, num_images: int, micro_batch: int, *, average: bool = True) -> Tensor:
    """Add up the gradient of the first `num_images` images' loss over the whole batch's size, and return that loss, ().

    average: whether the processes then average their gradients.
    """
    state.seed_dropout(batch.step)
    loss = torch.zeros((), device=batch.images.device)
    for start in range(0, num_images, micro_batch):
        part = slice(start, min(start + micro_batch, num_images))
        images, targets = batch.images[part], batch.targets[part]
        with state.averaging(average and part.stop == num_images):
            logits = state.model(images)
            # Weighted by the number of images, because the last micro-batch may be smaller.
            part_loss = state.loss(logits, targets, images) * (len(images) / len(batch.images))
            state.accelerator.backward(part_loss)
        loss += part_loss.detach()
    return loss


@contextlib.contextmanager
def _perturbed(state: TrainState, batch: Batch, num_images: int, micro_batch: int) -> Iterator[None]:
    """Move the weights inside the block along the gradient of the first images, if there are any (SAM). Every rank takes part."""
    if num_images == 0:
        yield
        return
    add_gradient(state, batch, num_images, micro_batch, average=False)
    with state.perturbed():
        yield


def end_epoch(run: OpenRun) -> Metrics | None:
    """Evaluate and save if due, and report the epoch. Returns the model's metrics after the last epoch.

    Every rank takes part.
    """
    plan, state, split = run.plan, run.state, run.eval_split
    epoch = plan.epochs_done(state.step)
    is_last, evaluates = epoch == plan.recipe.epochs, plan.evaluates_after(epoch, split.name)
    # The evaluation of a model that may be kept has its predictions too; its figures are those of the epoch.
    keeps = is_last or (evaluates and plan.options.keep_best is not None)
    outcome = measure_model(plan, state, split, run.poll) if keeps else None
    figures, remark = {}, None
    if evaluates:
        metrics = measure_weights(plan, state, split, run.poll, outcome)
        figures, band = named_figures(metrics, split.name), plan.band(epoch, split.name)
        remark = band and band.remark(metrics["raw" if state.ema is None else "ema"].top1)
    if outcome and is_last:
        run.on_main(lambda folder: outcome.write(folder.evaluation))
    run.report(figures, remark)
    if outcome and is_last:
        run.show(tensorboard.show_end, state.step, outcome.result)
    if outcome and plan.options.keep_best:
        run.on_main(lambda folder: keep_if_best(folder, plan, state, outcome, split.class_names))
    run.save_if_due()
    return outcome.metrics if outcome and is_last else None


def end_run(run: OpenRun, metrics: Metrics | None) -> Metrics:
    """Write the model and the result, and return the model's metrics. Every rank takes part.

    metrics: the model's metrics, if it was measured already.
    """
    plan, state = run.plan, run.state
    metrics = metrics or measured_before(plan, run.folder, run.eval_split)
    if metrics is None:
        outcome = measure_model(plan, state, run.eval_split, run.poll)
        run.on_main(lambda folder: outcome.write(folder.evaluation))
        metrics = outcome.metrics
    run.progress.close()  # Otherwise the bar would stand in front of the result.
    run.on_main(lambda folder: finish(folder, plan, state, metrics, run.eval_split.class_names))
    return metrics


def show_plan(ctx: RunContext, plan: Plan, state: TrainState, eval_split: Split) -> None:
    """Print the plan, and draw the first batch if asked to. Every rank takes part, and the main one prints."""
    options, train_split = ctx.options, plan.pipeline.split
    is_main = ctx.accelerator.is_main_process
    if is_main and (options.previews or not options.quiet):
        num_parameters = sum(parameter.numel() for parameter in state.net.parameters())
        plan_text = plan.describe(
            num_parameters, eval_split, ctx.output_dir, ctx.name, state.teacher, state.describe_start()
        )
        title, *rows = plan_text.splitlines()
        print(style(title, BOLD), *(f"{style(row[:16], DIM)}{row[16:]}" for row in rows), sep="\n", flush=True)
    if options.dry_run:
        written = ctx.run_config(plan, state, eval_split)
        ctx.on_main(lambda: print(describe_resume(ctx.output_dir, written, options.resume), flush=True))
    if options.contact_sheet is not None and is_main:
        buffer = io.BytesIO()
        batch = next(iter(plan.pipeline.batches(0, 1)))
        draw_batch(batch, plan.recipe.normalize, train_split.class_names).save(buffer, "PNG")
        atomic.write_file(options.contact_sheet, buffer.getvalue())
        print(f"  saved to       {options.contact_sheet}", flush=True)


install_excepthook(main)
