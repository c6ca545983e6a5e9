"""TensorBoard output other than the curves: recipe text and hyperparameters, augmented images, the confusion matrix."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cifar100_tk.evaluation.confusion_image import Confusion, draw
from cifar100_tk.recipe import Recipe, flatten, published, to_json
from cifar100_tk.storage.json_files import Json
from cifar100_tk.training.contact_sheet import draw_batch
from cifar100_tk.training.loader import Batch
from cifar100_tk.training.plan import Plan


def writer(accelerator: Accelerator) -> SummaryWriter:
    """Return TensorBoard's writer, which exists on the main process only, once the trackers are initialized."""
    held: SummaryWriter = accelerator.get_tracker("tensorboard", unwrap=True)
    return held


def show_recipe(writer: SummaryWriter, plan: Plan) -> None:
    """Show every number of the recipe: as a table under Text, and as hyperparameters under HParams."""
    numbers = numbers_of(plan.recipe)
    rows = "\n".join(f"| {name} | {value} |" for name, value in numbers.items())
    writer.add_text("recipe", f"| number | value |\n| --- | --- |\n{rows}", 0)
    _, start, _ = hparams(
        {name: str(value) if isinstance(value, bool) else value for name, value in numbers.items()}, {}
    )
    # Not add_hparams, which opens a separate run. There is no experiment description, because TensorBoard would use the
    # first that it finds; without one, HParams compares all hyperparameters and scalars of the runs that it sees.
    _add(writer, start, 0)
    writer.flush()


def numbers_of(recipe: Recipe) -> Json:
    """Return the recipe's settings by name, without folders of this machine, because event files get published."""
    return {name: value for name, value in flatten(published(to_json(recipe))).items() if value is not None}


def show_images(writer: SummaryWriter, plan: Plan, batch: Batch) -> None:
    """Show images of a batch as the network sees them."""
    sheet = draw_batch(batch, plan.recipe.normalize, plan.pipeline.split.class_names)
    writer.add_image("train/images", np.asarray(sheet), batch.step, dataformats="HWC")
    writer.flush()


def show_end(writer: SummaryWriter, step: int, result: Json) -> None:
    """Show the evaluation of the saved model: its confusion matrix, and its figures as result/top1 and so on.

    These names are the same for test and held-out images, so that HParams has one column for both. Marks the run as ended.
    result: the content of evaluation/SPLIT.json.
    """
    image = np.asarray(draw(Confusion.of(result)))
    writer.add_image(f"{result['split']}/confusion", image, step, dataformats="HWC")
    for name in ("top1", "top5", "loss"):
        if result[name] is not None:
            writer.add_scalar(f"result/{name}", result[name], step)
    _, _, end = hparams({}, {})
    _add(writer, end, step)
    writer.flush()


def _add(writer: SummaryWriter, summary: Any, step: int) -> None:
    file: FileWriter | None = writer.file_writer
    assert file is not None
    file.add_summary(summary, step)


def _leave_disk_errors_to_the_trainer() -> None:
    """Keep TensorBoard's thread from printing a disk error, which the next call of its writer raises again."""
    before = threading.excepthook

    def show(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            before(failed)

    threading.excepthook = show


_leave_disk_errors_to_the_trainer()
