"""The plan of a run: the options that do not change what is learned, and every number that follows from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from accelerate import Accelerator

from cifar100_tk.augment import SIDE, finish, resize_images
from cifar100_tk.data import Data, Split, eval_split
from cifar100_tk.distributed.launch import (
    Precision,
    choose_precision,
    cores_per_process,
    device_name,
    launcher_compiles,
    precision,
)
from cifar100_tk.errors import ConfigError
from cifar100_tk.models.cost import describe_size
from cifar100_tk.ranges import BATCH, COUNT, EPOCHS, MINUTES, Within, check_ranges
from cifar100_tk.recipe import Band, Recipe
from cifar100_tk.runs.best import check_metric
from cifar100_tk.runs.lengths import Earlier, describe_earlier, record
from cifar100_tk.storage import failpoint
from cifar100_tk.tensors import Images
from cifar100_tk.training.length import RunLength
from cifar100_tk.training.loader import BatchOrder, Pipeline, choose_executor
from cifar100_tk.training.teacher import Teacher
from cifar100_tk.training.trackers import TENSORBOARD, check_trackers


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run that do not change what is learned, with two exceptions: the limits, and for networks with
    BatchNorm its batch size, which `micro_batch`, `sync_batchnorm` and the number of processes determine."""

    output_dir: Path | None = None
    """The run folder; defaults to runs/NAME, where NAME is the recipe file's name."""
    seeds: Annotated[int, Within(low=1, high=10_000, use="give 1 or more")] = 1
    """Number of seeds to train with, one after the other, starting at --seed, into OUTPUT_DIR/seed-0, OUTPUT_DIR/seed-1 and
    so on; prints mean and standard deviation at the end. Running the same command again skips finished seeds and resumes
    the rest. 1 trains into OUTPUT_DIR itself."""
    extend_to: Annotated[int | None, EPOCHS] = None
    """Continue the stopped or finished run in the folder to this many epochs, whatever --epochs says; from its next step on the
    learning rate and the phases are those of the longer run. A finished shorter run is kept in OUTPUT_DIR/epoch-N."""
    keep_best: str | None = None
    """Keep the model that is best by holdout/top1, holdout/top5 or holdout/loss, measured every --eval-every epochs, in
    OUTPUT_DIR/best, beside the last; needs --data.holdout. None keeps only the last."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` resumes the unfinished run in the folder, if there is one; `never` requires a new folder."""
    dry_run: bool = False
    """Print the plan and stop."""
    contact_sheet: Path | None = None
    """Save the first batch as the network sees it, with its targets, to this PNG file, and stop."""
    limit_train_batches: Annotated[int | None, COUNT] = None
    """Maximum number of steps per epoch, for a quick look; the schedule is shortened with it."""
    limit_eval_batches: Annotated[int | None, COUNT] = None
    """Maximum number of batches of 500 images to evaluate on, for a quick look."""
    pipeline: Literal["auto", "device", "host"] = "auto"
    """The place where images are augmented: in batches on the training device, or by Pillow in worker processes. Both give the
    same images."""
    workers: Annotated[int | None, Within(low=0, high=256, use="give one for each core, or 0 for none")] = None
    """Worker processes of the host pipeline per training process; defaults to its share of the cores minus one, at most
    16."""
    threads: Annotated[int | None, Within(low=1, high=1024, use="give one for each core")] = None
    """CPU threads per training process; when training on a CPU, defaults to its share of the cores. Sums are rounded
    differently with another number."""
    micro_batch: Annotated[int | Literal["auto"] | None, BATCH] = None
    """Images per forward pass of a process, to save memory; defaults to its whole share of the batch. `auto` finds the
    largest that fits: the whole share, or a power of two."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Use torch.compile; `auto` does so on a GPU, for runs of 1,000 steps or more."""
    precision: Precision = "auto"
    """Mixed precision: bf16, fp16 with loss scaling, or float32 (`no`). `auto` uses the launcher's setting
    (`--mixed_precision bf16` or `fp16`); without one, bf16 on GPUs of compute capability 8 or more, float32 elsewhere."""
    sync_batchnorm: bool = False
    """Compute BatchNorm's statistics over all processes, as a single process would, instead of over each process's share;
    GPUs only."""
    timeout_minutes: Annotated[float, MINUTES] = 30.0
    """Minutes that a process waits for the others before it exits; a process that died is noticed within seconds."""
    eval_every: Annotated[int | None, COUNT] = None
    """Epochs between evaluations; the last epoch is always evaluated. By default a fifth of the epochs, at most 10."""
    log_every: Annotated[int, COUNT] = 10
    """Steps between the losses in steps.jsonl and the trackers, each of one batch."""
    log_with: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TRACKER [TRACKER ...]")] = (TENSORBOARD,)
    """Trackers to log to, one or several of those that Accelerate knows: tensorboard, wandb, trackio, mlflow, swanlab,
    comet_ml, aim, clearml, dvclive; or none."""
    project_name: str = "cifar100_tk"
    """The project in trackers other than TensorBoard; the run is named after its folder."""
    quiet: bool = False
    """Print only the result, warnings and errors: no plan, no progress."""
    checkpoint_every: Annotated[int | None, COUNT] = None
    """Epochs between checkpoints; by default a checkpoint is saved at the end of an epoch once the previous one is a minute
    old. The last epoch is always saved, and so is a run that is stopped by a signal."""
    keep: Annotated[int, COUNT] = 2
    """Number of checkpoints to keep."""
    deterministic: bool = False
    """Use only deterministic kernels on a GPU, at some cost in speed; those on a CPU always are."""

    def __post_init__(self) -> None:
        for name in ("output_dir", "contact_sheet"):
            if isinstance(path := getattr(self, name), str):  # Callers from Python may pass a string.
                object.__setattr__(self, name, Path(path))
        check_ranges(self, "--")
        if isinstance(names := vars(self)["log_with"], str | list):
            object.__setattr__(self, "log_with", (names,) if isinstance(names, str) else tuple(names))
        check_trackers(self.log_with)
        if self.extend_to is not None and self.resume == "never":
            raise ConfigError(
                f"--extend-to {self.extend_to} continues a run, but --resume=never starts a new one; leave one of them out."
            )
        check_metric(self.keep_best)
        if self.contact_sheet is not None and (self.contact_sheet.exists() or self.contact_sheet.is_symlink()):
            remedy = "the name of a file in it" if self.contact_sheet.is_dir() else "another name, or remove it first"
            kind = "a folder" if self.contact_sheet.is_dir() else "an existing file and is not overwritten"
            raise ConfigError(f"--contact-sheet {self.contact_sheet} is {kind}; give {remedy}.")

    @property
    def previews(self) -> bool:
        """True if the run is only shown and its folder left unchanged."""
        return self.dry_run or self.contact_sheet is not None


def with_keywords(options: RunOptions | None, keywords: dict[str, Any]) -> RunOptions:
    """Return run options with some given by keyword, as `train` takes them. Raises ConfigError for an unknown one."""
    if strangers := sorted(keywords.keys() - RunOptions.__dataclass_fields__.keys()):
        name = strangers[0]
        remedy = f"known are {', '.join(RunOptions.__dataclass_fields__)}"
        if name in Recipe.__dataclass_fields__:
            remedy = f"it is part of the recipe: give dataclasses.replace(recipe, {name}=...)"
        raise ConfigError(f"train has no run option {name}; {remedy}.")
    options = dataclasses.replace(options or RunOptions(), **keywords)
    if options.seeds != 1:
        raise ConfigError(
            f"train trains one seed, but seeds={options.seeds}; call it for each, with dataclasses.replace(recipe, seed=...) and "
            "an output_dir of its own."
        )
    return options


def open_splits(data: Data, accelerator: Accelerator) -> tuple[Split, Split]:
    """Return the training split and the evaluation split. Every rank takes part."""
    failpoint.reach("splits.opening")
    with accelerator.main_process_first():  # The main process prepares the data; the others then find it ready.
        # Without a held-out part, test is evaluated; nothing is selected by it, and the last epoch is reported.
        return data.open("train"), data.open(eval_split(data.holdout))


@dataclass(frozen=True)
class Plan:
    """The plan of a run: every number that follows from the recipe, the options and the launcher."""

    recipe: Recipe
    options: RunOptions
    accelerator: Accelerator
    pipeline: Pipeline
    why_executor: str
    num_steps: int
    micro_batch: int
    """Images per forward pass of a process; the whole share until `--micro-batch auto` has found the size."""
    compile: bool
    """True if we compile the network; Accelerate's own settings may do it instead."""
    earlier: tuple[Earlier, ...] = ()
    """The lengths that the run had before it was extended."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        options: RunOptions,
        accelerator: Accelerator,
        split: Split,
        earlier: tuple[Earlier, ...] = (),
    ) -> Plan:
        """Compute the plan. Raises ConfigError when the numbers are inconsistent.

        earlier: the lengths that the run had before it was extended to `recipe.epochs`.
        """
        steps_per_epoch = len(split) // recipe.batch_size
        if steps_per_epoch == 0:
            raise ConfigError(
                f"batch_size={recipe.batch_size} is more than the {len(split):,} training images; use at most {len(split)}."
            )
        steps_per_epoch = min(steps_per_epoch, options.limit_train_batches or steps_per_epoch)
        executor, why = choose_executor(options.pipeline, recipe.augment, accelerator.device, split.images.nbytes)
        # One loader process for each core that the trainer does not use.
        workers = max(1, min(16, cores_per_process() - 1)) if options.workers is None else options.workers
        rank, world = accelerator.process_index, accelerator.num_processes
        order = BatchOrder(recipe.seed, split.index, recipe.batch_size, steps_per_epoch, rank, world)
        smoothing = recipe.loss.smoothing_over_all(len(split.class_names))
        chain = (recipe.augment, recipe.normalize, recipe.cutout, recipe.mix, smoothing)
        num_steps = steps_per_epoch * recipe.epochs
        length = RunLength(num_steps, tuple((each.step, steps_per_epoch * each.epochs) for each in earlier))
        sizes = (recipe.resize, length, recipe.image_size)
        pipeline = Pipeline(split, order, *chain, accelerator.device, executor, workers, *sizes)
        on_a_gpu = accelerator.device.type == "cuda"
        wanted = options.compile == "on" or (options.compile == "auto" and on_a_gpu and num_steps >= 1000)
        if launcher_compiles(accelerator) and options.compile == "off":
            raise ConfigError(
                "--compile off, but the launcher asks for torch.compile; launch with --dynamo_backend no as well."
            )
        if options.sync_batchnorm and not on_a_gpu:
            raise ConfigError(
                f"--sync-batchnorm needs GPUs, but this run is on {accelerator.device}; leave it out, or train in "
                "one process with the whole batch."
            )
        if options.keep_best is not None and not recipe.data.holdout:
            raise ConfigError(
                f"--keep-best {options.keep_best} needs held-out training images; give --data.holdout 5000 as well."
            )
        if recipe.sam is not None and recipe.sam.num_images < world:
            raise ConfigError(
                f"sam.num_images={recipe.sam.num_images} leaves some of {world} processes without an image; use {world} or more."
            )
        compiled = wanted and not launcher_compiles(accelerator)
        micro_batch = _micro_batch(options.micro_batch, len(order.positions))
        return cls(recipe, options, accelerator, pipeline, why, num_steps, micro_batch, compiled, earlier)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        per_epoch, num_steps = self.pipeline.order.steps_per_epoch, self.pipeline.length.at(step)
        return self.recipe.schedule.lr(
            step, peak_lr=self.recipe.peak_lr, steps_per_epoch=per_epoch, num_steps=num_steps
        )

    def sam_images(self, step: int) -> int:
        """Return how many of this process's images, the first ones, SAM moves the weights with at a step; 0 if it is off."""
        sam, order = self.recipe.sam, self.pipeline.order
        if sam is None or not sam.is_on(step, order.steps_per_epoch, self.pipeline.length.at(step)):
            return 0
        return int(np.searchsorted(order.positions, sam.num_images))  # Positions ascend.

    def ends_epoch(self, step: int) -> bool:
        """Return whether a step, counted from 0, is the last of its epoch."""
        return (step + 1) % self.pipeline.order.steps_per_epoch == 0

    def epochs_done(self, steps_done: int) -> int:
        """Return the number of complete epochs after some steps."""
        return steps_done // self.pipeline.order.steps_per_epoch

    def evaluates_after(self, epoch: int, split: str) -> bool:
        """Return whether an epoch, counted from 1, ends with an evaluation."""
        every = self.options.eval_every or max(1, min(10, self.recipe.epochs // 5))
        due = epoch % every == 0 or epoch == self.recipe.epochs
        return due or self.band(epoch, split) is not None

    def whitening_images(self) -> Images | None:
        """Return the normalized training images that the first layer is computed from, on the host, or None."""
        if self.recipe.whitening is None:
            return None
        split = self.pipeline.split
        index = split.index[: self.recipe.whitening.num_images]
        images = finish(torch.from_numpy(split.images[index]), self.recipe.normalize, None, 0, 0, index)
        return resize_images(images, self.recipe.image_size)

    def band(self, epoch: int, split: str) -> Band | None:
        """Return the expected top-1 after an epoch, or None if there is no reference for this run."""
        if self.options.limit_train_batches or self.options.limit_eval_batches:
            return None
        return next((band for band in self.recipe.reference if (band.epoch, band.split) == (epoch, split)), None)

    @property
    def compiles(self) -> bool:
        """True if the network is compiled, by us or by Accelerate."""
        return self.compile or launcher_compiles(self.accelerator)

    @property
    def search_compiles(self) -> bool:
        """True if the search for a micro-batch compiles the network, as the run does.

        It does not in several processes: the run would reuse a graph that was compiled outside DistributedDataParallel,
        which is not split into its buckets of gradients, and so would average them after the backward pass, not during it.
        Nor does it if Accelerate compiles, because then only the wrapped network is compiled.
        """
        return self.compile and self.accelerator.num_processes == 1

    def describe(
        self,
        num_parameters: int,
        eval_split: Split,
        output_dir: Path,
        name: str,
        teacher: Teacher | None = None,
        start: dict[str, str] | None = None,
    ) -> str:
        """Return the plan as it is printed. start: its rows about the weights that the run starts from."""
        recipe, order, accelerator = self.recipe, self.pipeline.order, self.accelerator
        share, world, train_split = len(order.positions), order.world_size, self.pipeline.split
        rates = self._rates()
        per = f"{recipe.optimizer.lr:g} per {recipe.optimizer.lr_batch_size} images"
        scaling = per if recipe.optimizer.lr_batch_size else "at any batch size"
        whole_epoch, left = divmod(len(train_split), recipe.batch_size)
        steps = f"{order.steps_per_epoch:,} per epoch, {self.num_steps:,} in {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"
        if order.steps_per_epoch < whole_epoch:
            steps += "; epochs are cut short by --limit-train-batches"
        elif left:
            steps += f"; the last {left:,} images of each epoch do not fill a batch and are dropped"
        counts = f"{len(train_split):,} train, {len(eval_split):,} {eval_split.name}"
        _, why = choose_precision(self.options.precision)
        device = f"{device_name(accelerator)}, {world} process{'es' * (world > 1)}, {precision(accelerator)}, {why}"
        chain = ", ".join(type(augmentation).__name__ for augmentation in recipe.augment) or "none"
        eager = ", not compiled" * (self.compiles and not self.search_compiles)
        fits = f" (the largest that fits{eager})"
        rows = {
            "network": f"{recipe.model.name}, {num_parameters:,} parameters",
            **(start or {}),
            "data": f"{recipe.data.source}: {counts}; {train_split.identity.sentence}",
            "device": device + (", compiled" if self.compiles else ""),
            "batch": f"{recipe.batch_size:,} = {world} x {share:,}"
            + (f" in micro-batches of {self.micro_batch:,}" if self.micro_batch < share else "")
            + (fits if self.options.micro_batch == "auto" and self.micro_batch < share else ""),
            "steps": steps,
            "learning rate": f"{rates[0]:.3g} at the first step, {max(rates):.3g} at the peak, {rates[-1]:.3g} at the last; "
            + scaling,
            "loss": repr(recipe.loss),
            "augmentation": f"{chain}; {self.pipeline.executor} pipeline, {self.why_executor}",
            "writes to": str(output_dir),
        }
        if self.options.log_with != (TENSORBOARD,):
            rows["logs to"] = ", ".join(self.options.log_with)
        if self.earlier:
            spoken = describe_earlier(record(self.earlier))
            rows["extended"] = (
                f"{spoken.removeprefix('extended ')}; from there on the schedule is that of the longer run"
            )
        if teacher is not None and recipe.distillation is not None:
            rows["teacher"] = teacher.describe(recipe.distillation, recipe.image_size)
        if points := [f"{epoch}" for epoch in range(1, recipe.epochs + 1) if self.band(epoch, eval_split.name)]:
            rows["reference"] = f"top-1 after epoch {', '.join(points)}; warns when it leaves the expected range"
        phase = order.steps_per_epoch, self.num_steps
        if recipe.mix is not None and recipe.mix.active and not recipe.mix.throughout:
            rows["mixing"] = recipe.mix.describe_phase(*phase)
        if recipe.sam is not None:
            sam = recipe.sam
            images = min(sam.num_images, recipe.batch_size)
            rows["SAM"] = f"rho {sam.rho:g} on {images:,} images, {sam.describe_phase(*phase)}"
        if recipe.lookahead is not None:
            rows["lookahead"] = f"every {recipe.lookahead.k:,} steps, decay up to {recipe.lookahead.decay:g}"
        if recipe.image_size != SIDE:
            num_classes = len(train_split.class_names)
            rows["image size"] = describe_size(
                recipe.model, num_classes, recipe.image_size, min(self.micro_batch, share)
            )
        if recipe.resize is not None:
            rows["stages" if recipe.image_size != SIDE else "image size"] = recipe.resize.describe(self.num_steps)
        if recipe.whitening is not None:
            rows["first layer"] = f"whitened with {recipe.whitening.num_images:,} training images, and frozen"
        if (warmup := recipe.schedule.warmup_steps(order.steps_per_epoch, self.num_steps)) >= self.num_steps:
            rows["schedule"] = f"the warm-up of {warmup:,} steps lasts until the end of the run"
        if (gpus := torch.cuda.device_count()) > 1 == world and accelerator.device.type == "cuda":
            idle = "1 more GPU is" if gpus == 2 else f"{gpus - 1} more GPUs are"
            rows["idle"] = f"{idle} idle; accelerate launch --multi_gpu --num_processes {gpus} uses them"
        return f"{name}, seed {recipe.seed}\n" + "\n".join(f"  {label:14} {text}" for label, text in rows.items())

    def _rates(self) -> list[float]:
        """Return the learning rates of the first step, some 10,000 in between, the end of the warm-up, and the last step."""
        warmup = self.recipe.schedule.warmup_steps(self.pipeline.order.steps_per_epoch, self.num_steps)
        steps = {*range(0, self.num_steps, max(1, self.num_steps // 10_000)), self.num_steps - 1}
        return [self.lr(step) for step in sorted(steps | {min(max(warmup, 1), self.num_steps) - 1})]


def _micro_batch(asked: int | Literal["auto"] | None, share: int) -> int:
    """Return the images per forward pass: --micro-batch, at most the whole share of a process."""
    if asked is None or asked == "auto":
        return share
    return min(asked, share)
