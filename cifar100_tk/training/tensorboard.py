"""TensorBoard output other than the curves: recipe text and hyperparameters, augmented images, the confusion matrix."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from accelerate import Accelerator
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cifar100_tk.data import Split, source_name
from cifar100_tk.recipe import Recipe, flatten, to_json
from cifar100_tk.storage.json_files import Json
from cifar100_tk.training.contact_sheet import contact_sheet
from cifar100_tk.training.loader import Batch
from cifar100_tk.training.plan import Plan

CELL = 10
"""Pixels of a cell of the confusion matrix."""
INK, PAPER = (8, 48, 107), (255, 255, 255)
"""Colours of a cell with all images of a class, and with none."""
LINE = (190, 190, 190)
MARGIN = 4


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
    """Return the recipe's settings by name; a local copy without its parent folders, because event files get published."""
    numbers = {name: value for name, value in flatten(to_json(recipe)).items() if value is not None}
    return numbers | {"data.source": source_name(recipe.data.source)}


def show_images(writer: SummaryWriter, plan: Plan, batch: Batch) -> None:
    """Show images of a batch as the network sees them."""
    sheet = contact_sheet(batch, plan.recipe.normalize, plan.pipeline.split.class_names)
    writer.add_image("train/images", np.asarray(sheet), batch.step, dataformats="HWC")
    writer.flush()


def show_result(writer: SummaryWriter, step: int, result: Json, split: Split) -> None:
    """Show the confusion matrix of the last evaluation, and mark the run as ended in HParams."""
    _, _, end = hparams({}, {})
    _add(writer, end, step)
    # Classes without super-classes are one group without a name.
    groups = split.coarse_of_fine or (0,) * len(split.class_names)
    drawn = confusion_matrix(result["confusion"], split.class_names, split.coarse_names or ("",), groups)
    writer.add_image(f"{split.name}/confusion", np.asarray(drawn), step, dataformats="HWC")
    writer.flush()


def _add(writer: SummaryWriter, summary: Any, step: int) -> None:
    file: FileWriter | None = writer.file_writer
    assert file is not None
    file.add_summary(summary, step)


def confusion_matrix(
    confusion: Sequence[Sequence[int]], names: Sequence[str], coarse_names: Sequence[str], coarse_of: Sequence[int]
) -> PIL.Image.Image:
    """Draw a confusion matrix (C, C): rows are true classes, columns predicted ones, both ordered by super-class.

    A cell is shaded by the square root of its share of the row's images, so that single mistakes are visible. Classes are
    named on the left and at the top, super-classes, separated by lines, on the right.
    """
    order = sorted(range(len(names)), key=lambda number: (coarse_of[number], number))
    counts = np.asarray(confusion, dtype=np.float64)[np.ix_(order, order)]
    shade = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[..., None]
    colours = np.array(PAPER) * (1 - shade) + np.array(INK) * shade
    cells = PIL.Image.fromarray(colours.round().astype(np.uint8).repeat(CELL, axis=0).repeat(CELL, axis=1))
    pen, side = PIL.ImageDraw.Draw(cells), cells.height
    blocks: dict[int, list[float]] = {}
    for place, number in enumerate(order):
        blocks.setdefault(coarse_of[number], []).append(CELL * place + CELL / 2)
    for middles in blocks.values():
        start = middles[0] - CELL / 2
        pen.line((start, 0, start, side), fill=LINE)
        pen.line((0, start, side, start), fill=LINE)
    classes = {CELL * place + CELL / 2: names[number] for place, number in enumerate(order)}
    superclasses = {sum(middles) / len(middles): coarse_names[number] for number, middles in blocks.items()}
    left, right = _labels(classes, side, "rm"), _labels(superclasses, side, "lm")
    above = _labels(classes, side, "lm").transpose(PIL.Image.Transpose.ROTATE_90)
    drawn = PIL.Image.new("RGB", (left.width + side + right.width, above.height + side), PAPER)
    for part, corner in (
        (above, (left.width, 0)),
        (left, (0, above.height)),
        (cells, (left.width, above.height)),
        (right, (left.width + side, above.height)),
    ):
        drawn.paste(part, corner)
    return drawn


def _labels(texts: dict[float, str], height: int, anchor: Literal["lm", "rm"]) -> PIL.Image.Image:
    """Draw texts at given heights, aligned to the left or to the right."""
    font: Any = PIL.ImageFont.load_default(size=CELL)
    width = math.ceil(max(font.getlength(text) for text in texts.values())) + 2 * MARGIN
    drawn = PIL.Image.new("RGB", (width, height), PAPER)
    pen = PIL.ImageDraw.Draw(drawn)
    for middle, text in texts.items():
        pen.text((MARGIN if anchor == "lm" else width - MARGIN, middle), text, fill="black", font=font, anchor=anchor)
    return drawn


def _leave_disk_errors_to_the_trainer() -> None:
    """Keep TensorBoard's thread from printing a disk error, which the next call of its writer raises again."""
    before = threading.excepthook

    def show(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            before(failed)

    threading.excepthook = show


_leave_disk_errors_to_the_trainer()
