"""The plan of a run: the options that do not change what is learned, and every number that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator

from cifar100_tk.augment import finish
from cifar100_tk.data import Cifar100, Split, eval_split
from cifar100_tk.distributed.launch import (
    Precision,
    choose_precision,
    cores_per_process,
    device_name,
    launcher_compiles,
    precision,
)
from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import BATCH, COUNT, MINUTES, Within, check_ranges
from cifar100_tk.recipe import Band, Recipe
from cifar100_tk.tensors import Images
from cifar100_tk.training.loader import BatchOrder, Pipeline, choose_executor


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how fast, not what. Two things reach what is learned: the limits, and for networks with BatchNorm how many
    images it sees at a time, which `micro_batch`, `sync_batchnorm` and the number of processes decide."""

    output_dir: Path | None = None
    """The run folder; runs/NAME if not given, NAME being the recipe file's."""
    seeds: Annotated[int, Within(low=1, high=10_000, use="give 1 or more")] = 1
    """Train with so many seeds one after the other, --seed and up, into OUTPUT_DIR/seed-0, OUTPUT_DIR/seed-1 and so on, and
    end with mean and standard deviation. The same command again leaves out what is finished and goes on with the rest.
    1 trains into OUTPUT_DIR itself."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on with the unfinished run that the folder holds; `never` wants a new folder."""
    dry_run: bool = False
    """Print the plan and stop."""
    contact_sheet: Path | None = None
    """Draw the first batch as the network will see it, with its targets, to this PNG file, and stop."""
    limit_train_batches: Annotated[int | None, COUNT] = None
    """Cut every epoch to so many steps, for a quick look; the schedule is cut with it."""
    limit_eval_batches: Annotated[int | None, COUNT] = None
    """Evaluate on so many times 500 images, for a quick look."""
    pipeline: Literal["auto", "device", "host"] = "auto"
    """Where images are augmented: batched on the training device, or by Pillow in worker processes. Same images."""
    workers: Annotated[int | None, Within(low=0, high=256, use="give one for each core, or 0 for none")] = None
    """Worker processes of the host pipeline, for each training process; if not given its share of the cores less one, at
    most 16."""
    threads: Annotated[int | None, Within(low=1, high=1024, use="give one for each core")] = None
    """CPU threads of each training process; on a CPU its share of all cores if not given. Sums round differently with it."""
    micro_batch: Annotated[int | Literal["auto"] | None, BATCH] = None
    """Images of one forward pass of a process, to save memory; its whole share of the batch if not given. `auto` finds
    the most that fit: the whole share, or a power of two."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch.compile fuses the network; `auto` does on a GPU, for runs of 1,000 steps or more."""
    precision: Precision = "auto"
    """What the network computes in: bf16, fp16 with loss scaling, or float32 (`no`). `auto` takes what the launcher names
    (`--mixed_precision bf16` or `fp16`); if it names none, bf16 on GPUs of compute capability 8 or more, float32 elsewhere."""
    sync_batchnorm: bool = False
    """Compute BatchNorm's statistics over all processes, as one process would, rather than over each one's share; GPUs
    only."""
    timeout_minutes: Annotated[float, MINUTES] = 30.0
    """Minutes that a process waits for the others before it ends; one that died is noticed in seconds."""
    eval_every: Annotated[int, COUNT] = 10
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""
    checkpoint_every: Annotated[int | None, COUNT] = None
    """Epochs from one checkpoint to the next; by default a checkpoint is saved at the end of an epoch once the previous one
    is a minute old. The last epoch is always saved, and so is a run that is told to stop."""
    keep: Annotated[int, COUNT] = 2
    """Checkpoints to keep."""
    deterministic: bool = False
    """On a GPU, use only kernels that give the same bits each time, at some cost in speed; on a CPU they always do."""

    def __post_init__(self) -> None:
        for name in ("output_dir", "contact_sheet"):
            if isinstance(path := getattr(self, name), str):  # As Python code may well give it.
                object.__setattr__(self, name, Path(path))
        check_ranges(self, "--")
        if self.contact_sheet is not None and (self.contact_sheet.exists() or self.contact_sheet.is_symlink()):
            remedy = "the name of a file in it" if self.contact_sheet.is_dir() else "another name, or remove it first"
            kind = "a folder" if self.contact_sheet.is_dir() else "there already, and is left as it is"
            raise ConfigError(f"--contact-sheet {self.contact_sheet} is {kind}; give {remedy}.")

    @property
    def previews(self) -> bool:
        """Whether the run is only shown, and its folder left as it is."""
        return self.dry_run or self.contact_sheet is not None


def open_splits(data: Cifar100, accelerator: Accelerator) -> tuple[Split, Split]:
    """Return what is trained on and what is measured on. Every rank takes part."""
    with accelerator.main_process_first():  # One prepares the data, the others find it done.
        # Without a held-out part test is watched; nothing is chosen by it, and the last epoch is what is reported.
        return data.open("train"), data.open(eval_split(data.holdout))


@dataclass(frozen=True)
class Plan:
    """What is about to happen: every number that follows from the recipe, the options and the launcher."""

    recipe: Recipe
    options: RunOptions
    accelerator: Accelerator
    pipeline: Pipeline
    why_executor: str
    num_steps: int
    micro_batch: int
    """Images of one forward pass of a process; the whole share until `--micro-batch auto` has found out."""
    compile: bool
    """Whether we compile the network; Accelerate's own settings may do it instead."""

    @classmethod
    def of(cls, recipe: Recipe, options: RunOptions, accelerator: Accelerator, split: Split) -> Plan:
        """Work the plan out. Raises ConfigError when the numbers do not fit together."""
        steps_per_epoch = len(split) // recipe.batch_size
        if steps_per_epoch == 0:
            raise ConfigError(
                f"batch_size={recipe.batch_size} is more than the {len(split):,} training images; use at most that."
            )
        steps_per_epoch = min(steps_per_epoch, options.limit_train_batches or steps_per_epoch)
        executor, why = choose_executor(options.pipeline, recipe.augment, accelerator.device, split.images.nbytes)
        # A loader process for each core that the trainer leaves free.
        workers = max(1, min(16, cores_per_process() - 1)) if options.workers is None else options.workers
        rank, world = accelerator.process_index, accelerator.num_processes
        order = BatchOrder(recipe.seed, split.index, recipe.batch_size, steps_per_epoch, rank, world)
        smoothing = recipe.loss.smoothing_over_all(len(split.class_names))
        chain = (recipe.augment, recipe.normalize, recipe.cutout, recipe.mix, smoothing)
        num_steps = steps_per_epoch * recipe.epochs
        pipeline = Pipeline(split, order, *chain, accelerator.device, executor, workers, recipe.resize, num_steps)
        on_a_gpu = accelerator.device.type == "cuda"
        wanted = options.compile == "on" or (options.compile == "auto" and on_a_gpu and num_steps >= 1000)
        if launcher_compiles(accelerator) and options.compile == "off":
            raise ConfigError(
                "--compile off, but the launcher asks for torch.compile; launch with --dynamo_backend no as well."
            )
        if options.sync_batchnorm and not on_a_gpu:
            raise ConfigError(
                f"--sync-batchnorm needs GPUs, and this run is on {accelerator.device}, for which torch has none; leave it off, "
                "or train in one process with the whole batch."
            )
        compiled = wanted and not launcher_compiles(accelerator)
        micro_batch = _pieces(options.micro_batch, len(order.positions))
        return cls(recipe, options, accelerator, pipeline, why, num_steps, micro_batch, compiled)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        per_epoch = self.pipeline.order.steps_per_epoch
        return self.recipe.schedule.lr(
            step, peak_lr=self.recipe.peak_lr, steps_per_epoch=per_epoch, num_steps=self.num_steps
        )

    def ends_epoch(self, step: int) -> bool:
        """Return whether a step, counted from 0, is the last of its epoch."""
        return (step + 1) % self.pipeline.order.steps_per_epoch == 0

    def epochs_done(self, steps_done: int) -> int:
        """Return the whole epochs in so many steps."""
        return steps_done // self.pipeline.order.steps_per_epoch

    def evaluates_after(self, epoch: int, split: str) -> bool:
        """Return whether an epoch, counted from 1, ends with an evaluation."""
        due = epoch % self.options.eval_every == 0 or epoch == self.recipe.epochs
        return due or self.band(epoch, split) is not None

    def whitening_images(self) -> Images | None:
        """Return the training images that the first layer is computed from, normalized, on the host; None for none."""
        if self.recipe.whitening is None:
            return None
        split = self.pipeline.split
        index = split.index[: self.recipe.whitening.num_images]
        return finish(torch.from_numpy(split.images[index]), self.recipe.normalize, None, 0, 0, index)

    def band(self, epoch: int, split: str) -> Band | None:
        """Return where the model is expected after an epoch, if anything is known of runs like this one."""
        if self.options.limit_train_batches or self.options.limit_eval_batches:
            return None
        return next((band for band in self.recipe.reference if (band.epoch, band.split) == (epoch, split)), None)

    @property
    def compiles(self) -> bool:
        """Whether the network is compiled, by us or by Accelerate."""
        return self.compile or launcher_compiles(self.accelerator)

    def describe(self, num_parameters: int, eval_split: Split, output_dir: Path, name: str) -> str:
        """Return the plan as the screen shows it."""
        recipe, order, accelerator = self.recipe, self.pipeline.order, self.accelerator
        share, world, train_split = len(order.positions), order.world_size, self.pipeline.split
        rates = self._rates()
        per = f"{recipe.optimizer.lr:g} per {recipe.optimizer.lr_batch_size} images"
        scaling = per if recipe.optimizer.lr_batch_size else "whatever the batch"
        whole_epoch, left = divmod(len(train_split), recipe.batch_size)
        steps = f"{order.steps_per_epoch:,} an epoch, {self.num_steps:,} in {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"
        if order.steps_per_epoch < whole_epoch:
            steps += "; epochs are cut short by --limit-train-batches"
        elif left:
            steps += f"; {left:,} images, others each time, do not fill a batch"
        counts = f"{len(train_split):,} train, {len(eval_split):,} {eval_split.name}"
        _, why = choose_precision(self.options.precision)
        device = f"{device_name(accelerator)}, {world} process{'es' * (world > 1)}, {precision(accelerator)}, {why}"
        chain = ", ".join(type(one).__name__ for one in recipe.augment) or "none"
        # The search asks the eager network, for compiling it at every size would take minutes.
        fits = " (all that fits, not compiled)" if self.compiles else " (all that fits)"
        rows = {
            "network": f"{recipe.model.name}, {num_parameters:,} parameters",
            "data": f"{recipe.data.source}: {counts}; {train_split.identity.sentence}",
            "device": device + (", compiled" if self.compiles else ""),
            "batch": f"{recipe.batch_size:,} = {world} x {share:,}"
            + (f" in pieces of {self.micro_batch:,}" if self.micro_batch < share else "")
            + (fits if self.options.micro_batch == "auto" and self.micro_batch < share else ""),
            "steps": steps,
            "learning rate": f"{rates[0]:.3g} at the first step, {max(rates):.3g} at the top, {rates[-1]:.3g} at the last; "
            + scaling,
            "augmentation": f"{chain}; {self.pipeline.executor} pipeline, {self.why_executor}",
            "writes to": str(output_dir),
        }
        if points := [f"{epoch}" for epoch in range(1, recipe.epochs + 1) if self.band(epoch, eval_split.name)]:
            rows["reference"] = (
                f"{len(points)} points, after epoch {', '.join(points)}; a run that is elsewhere says so"
            )
        if recipe.resize is not None:
            rows["image size"] = recipe.resize.describe(self.num_steps)
        if recipe.whitening is not None:
            rows["first layer"] = f"whitened with {recipe.whitening.num_images:,} training images, and frozen"
        if (warmup := recipe.schedule.warmup_steps(order.steps_per_epoch, self.num_steps)) >= self.num_steps:
            rows["schedule"] = f"the warm-up, {warmup:,} steps long, lasts to the end of the run"
        if (gpus := torch.cuda.device_count()) > 1 == world and accelerator.device.type == "cuda":
            idle = "1 more GPU is" if gpus == 2 else f"{gpus - 1} more GPUs are"
            rows["idle"] = f"{idle} idle; accelerate launch --multi_gpu --num_processes {gpus} uses them"
        return f"{name}, seed {recipe.seed}\n" + "\n".join(f"  {label:14} {text}" for label, text in rows.items())

    def _rates(self) -> list[float]:
        """Return the learning rates of the first step, of some 10,000 in order, of the end of the warm-up, and of the last."""
        warmup = self.recipe.schedule.warmup_steps(self.pipeline.order.steps_per_epoch, self.num_steps)
        steps = {*range(0, self.num_steps, max(1, self.num_steps // 10_000)), self.num_steps - 1}
        return [self.lr(step) for step in sorted(steps | {min(max(warmup, 1), self.num_steps) - 1})]


def _pieces(asked: int | Literal["auto"] | None, share: int) -> int:
    """Return the images of one forward pass: the whole share of a process, or what --micro-batch asks for."""
    if asked is None or asked == "auto":
        return share
    return min(asked, share)
