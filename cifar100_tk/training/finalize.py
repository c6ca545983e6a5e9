"""The end of a run: the model is measured image by image, the model folder and status are written, the result printed."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import asdict

from cifar100_tk.data import Split, eval_split
from cifar100_tk.distributed.collectives import from_main
from cifar100_tk.distributed.launch import device_name
from cifar100_tk.errors import DataError
from cifar100_tk.evaluation import files as evaluation_files
from cifar100_tk.evaluation.measure import Measurement, measure
from cifar100_tk.evaluation.metrics import Metrics
from cifar100_tk.evaluation.predictions import evaluate
from cifar100_tk.models import folder as model_folder
from cifar100_tk.models import registered_by
from cifar100_tk.progress import BOLD, duration, percent, style
from cifar100_tk.runs.best import FOLDER, Best, best_of
from cifar100_tk.runs.files import read_recipe, write_status
from cifar100_tk.runs.run_folder import RunFolder
from cifar100_tk.storage import atomic
from cifar100_tk.storage.json_files import Json, to_bytes
from cifar100_tk.training.plan import Plan
from cifar100_tk.training.state import TrainState


def measure_model(plan: Plan, state: TrainState, split: Split, poll: Callable[[], None]) -> Measurement:
    """Measure the saved weights. Every rank takes part, and all get the same result."""
    return measure(
        state.measured,
        split,
        plan.recipe.normalize,
        image_size=plan.recipe.image_size,
        accelerator=plan.accelerator,
        name=str(plan.accelerator.logging_dir),
        source=plan.recipe.data.source,
        weights="raw" if state.ema is None else "ema",
        limit_batches=plan.options.limit_eval_batches,
        between_batches=poll,
    )


def measure_weights(
    plan: Plan, state: TrainState, split: Split, poll: Callable[[], None], measurement: Measurement | None
) -> dict[str, Metrics]:
    """Measure the raw weights, and their average if there is one. Every rank takes part.

    measurement: that of the saved weights, if there is one.
    """
    nets = {"raw": state.net} | ({} if state.ema is None else {"ema": state.ema.module})
    return {
        which: measurement.metrics
        if measurement and net is state.measured
        else evaluate(
            net,
            split,
            plan.recipe.normalize,
            image_size=plan.recipe.image_size,
            accelerator=plan.accelerator,
            limit_batches=plan.options.limit_eval_batches,
            between_batches=poll,
        )
        for which, net in nets.items()
    }


def measured_before(plan: Plan, run: RunFolder | None, split: Split) -> Metrics | None:
    """Return the final metrics that the run had written before it was killed, or None. Every rank takes part."""

    def read() -> Json | None:
        assert run is not None
        try:
            result, _ = evaluation_files.read(run.evaluation, split.name)
        except DataError as error:
            print(f"  note           {error}", flush=True)
            return None
        return result

    result = from_main(plan.accelerator, read)
    return None if result is None else Metrics.of_result(result)


def keep_if_best(
    run: RunFolder, plan: Plan, state: TrainState, measurement: Measurement, names: tuple[str, ...]
) -> None:
    """Keep the model beside the run if it is the best so far by the metric of --keep-best. Called on the main process only.

    measurement: that of the saved weights after this epoch, which is reported already. names: the class names.
    """
    recipe, metric, metrics = plan.recipe, plan.options.keep_best, measurement.metrics
    assert metric is not None
    value = float(getattr(metrics, metric.removeprefix("holdout/")))
    best = Best(metric, value, plan.epochs_done(state.step))
    if not math.isfinite(value) or not best.beats(best_of(run.path)):
        return
    kept = run.path / FOLDER
    figures = {"top1": metrics.top1, "top5": metrics.top5, "loss": metrics.loss}
    with atomic.writing(kept), atomic.replaced_folder(kept) as folder:
        atomic.copy_files([run.path / "environment.json", run.path / "metrics.jsonl"], run.path, folder)
        atomic.write_file(folder / "recipe.json", to_bytes(read_recipe(run.path) | {"best": asdict(best)}))
        measurement.write(folder / "evaluation")
        card = _card(plan, state, metrics, best.epoch)
        model_folder.write(
            folder / "model", state.measured, names, recipe.normalize, card, image_size=recipe.image_size
        )
        write_status(folder, "finished", step=state.step, seconds=state.seconds, **figures)


def _conditions(plan: Plan, metrics: Metrics, epoch: int) -> str:
    split = eval_split(plan.recipe.data.holdout)
    images = f"{metrics.num_images:,} {split} images of {plan.recipe.data.source}"
    return f"{images}, after epoch {epoch}, seed {plan.recipe.seed}"


def _accuracies(metrics: Metrics) -> str:
    return f"top-1 {percent(metrics.top1)}, top-5 {percent(metrics.top5)}"


def _card(plan: Plan, state: TrainState, metrics: Metrics, epoch: int) -> str:
    accuracies = _accuracies(metrics).capitalize()
    origin = "" if state.pretrained is None else f"\n{state.pretrained.sentence}\n"
    return f"# {plan.recipe.model.name}\n\n{accuracies} ({_conditions(plan, metrics, epoch)}).\n{origin}"


def finish(run: RunFolder, plan: Plan, state: TrainState, metrics: Metrics, names: tuple[str, ...]) -> None:
    """Write the model folder and the status, and print the result in a line. Called on the main process only.

    names: the class names.
    """
    recipe = plan.recipe
    split = eval_split(recipe.data.holdout)
    conditions, accuracies = _conditions(plan, metrics, recipe.epochs), _accuracies(metrics)
    if not run.model.exists():
        card = _card(plan, state, metrics, recipe.epochs)
        model_folder.write(run.model, state.measured, names, recipe.normalize, card, image_size=recipe.image_size)
    figures = {"top1": metrics.top1, "top5": metrics.top5, "loss": metrics.loss}
    run.set_status("finished", step=state.step, seconds=state.seconds, **figures)
    weights = " (EMA weights)" if recipe.ema else ""
    print(
        f"{style(accuracies, BOLD)}{weights} on {conditions}; {duration(state.seconds)} on {device_name(plan.accelerator)}"
    )
    if plan.options.keep_best and (best := best_of(run.path)):
        value = f"{best.value:.4f}" if best.metric.endswith("loss") else percent(best.value)
        print(f"best by {best.metric}: {value} after epoch {best.epoch}, in {run.path / FOLDER}")
    own = registered_by(recipe.model.name)
    options = (["--split", "holdout"] if split == "holdout" else []) + (["--register", str(own)] if own else [])
    again = shlex.join(["python", "-m", "cifar100_tk.eval", str(run.path), *options])
    print(f"model in {run.model}; measure it again with: {again}", flush=True)
