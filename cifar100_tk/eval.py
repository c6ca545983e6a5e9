"""`python -m cifar100_tk.eval MODEL`: measure a run folder, a model folder or a Hub id on any source and split."""

from __future__ import annotations

import dataclasses
import json
import runpy
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cifar100_tk.errors import ConfigError, DataError, ResumeError, exit_with_sentence

# torch, timm and Accelerate take seconds to import; they are imported when the arguments are known to be good.


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Which pictures; what is not given is taken from the recipe of a run folder, else from the defaults of `Cifar100`."""

    source: str | None = None
    """hub, shapes100, or the path of a local copy; if not given what a run folder's recipe says, else hub."""
    holdout: int | None = None
    """Pictures of train that were set aside in training."""
    holdout_seed: int | None = None
    """The seed that chose them."""
    shapes100_rows: tuple[int, int] | None = None
    """Train and test pictures that shapes100 draws."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Measure a model on a split: top-1, top-5 and loss, every picture once."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a Hub id USER/NAME."""
    data: DataChoice = field(default_factory=DataChoice)
    """The pictures."""
    split: Literal["test", "holdout", "train"] = "test"
    """The part of them to measure on."""
    register: Path | None = None
    """A Python file to run first, such as the recipe that registers a network of your own with timm."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    batch_size: int = 500
    """Pictures a process at a time; changes speed and memory only."""
    limit_batches: int | None = None
    """Measure on so many batches only, for a quick look."""
    output: Path | None = None
    """Also write the figures to this file, as JSON."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "limit_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value} is not positive; give 1 or more.")
        if self.register is not None and not self.register.is_file():
            raise ConfigError(f"--register {self.register}: there is no such file.")
        if self.output is not None and not self.output.absolute().parent.is_dir():
            raise ConfigError(
                f"--output {self.output}: there is no folder {self.output.absolute().parent}; make it first."
            )


def main() -> None:
    """Run the command and end the process with the exit code that fits."""
    program = "python -m cifar100_tk.eval"
    with exit_with_sentence(program):
        measure(tyro.cli(EvalOptions, prog=program))


def measure(options: EvalOptions) -> dict[str, Any]:
    """Measure as the options say, print the result, write the JSON. Returns what it holds."""
    from accelerate import Accelerator

    from cifar100_tk import atomic, model_folder
    from cifar100_tk.data import Cifar100
    from cifar100_tk.evaluation import evaluate
    from cifar100_tk.launch import check_launch, check_started, precision, use_threads
    from cifar100_tk.progress import percent

    if options.register is not None:
        runpy.run_path(str(options.register))
    classifier = model_folder.load(options.model, revision=options.revision)
    data = Cifar100(**(_data_of_run(options.model) | {k: v for k, v in vars(options.data).items() if v is not None}))
    check_launch()
    if options.split == "holdout" and not data.holdout:
        raise ConfigError(
            f"{options.model} does not say that pictures of train were set aside; --split holdout needs the --data.holdout "
            "and --data.holdout-seed that it was trained with, or it would be measured on pictures that it has seen."
        )
    accelerator = Accelerator()
    check_started(accelerator)
    use_threads(accelerator.device, None)
    with accelerator.main_process_first():
        split = data.open(options.split)
    if classifier.class_names != split.class_names:
        raise DataError(
            f"{options.model} knows {len(classifier.class_names)} classes ({classifier.class_names[0]}, ...), but {data.source} "
            f"has {len(split.class_names)} ({split.class_names[0]}, ...); give the --data.source that it was trained on."
        )
    started = time.perf_counter()
    metrics = evaluate(
        classifier.model.to(accelerator.device),
        split,
        classifier.normalize,
        accelerator=accelerator,
        batch_size=options.batch_size,
        limit_batches=options.limit_batches,
    )
    seconds = time.perf_counter() - started
    result = vars(metrics) | {
        "model": options.model,
        "source": data.source,
        "split": options.split,
        "pictures": split.identity.sentence,
        "precision": precision(accelerator),
        "images_per_second": metrics.num_images / seconds,
    }
    if accelerator.is_main_process:
        print(
            f"top-1 {percent(metrics.top1)}, top-5 {percent(metrics.top5)}, loss {metrics.loss:.4f} on {metrics.num_images:,} "
            f"{options.split} pictures of {data.source} ({split.identity.sentence}); "
            f"{precision(accelerator)}, {metrics.num_images / seconds:,.0f} images/s",
            flush=True,
        )
        if options.output is not None:
            atomic.write_file(options.output, (json.dumps(result, indent=2) + "\n").encode())
    return result


def _data_of_run(source: str) -> dict[str, Any]:
    """Return the data part of a run folder's recipe as arguments of `Cifar100`; {} where MODEL is no run folder."""
    from cifar100_tk.data import Cifar100
    from cifar100_tk.run_folder import read_recipe

    recipe = Path(source) / "recipe.json"
    if not recipe.is_file():
        return {}
    try:
        data = read_recipe(Path(source))["data"]
        data["shapes100_rows"] = tuple(data["shapes100_rows"])
        return {field.name: data[field.name] for field in dataclasses.fields(Cifar100)}
    except (ResumeError, KeyError, TypeError) as error:
        raise DataError(
            f"{recipe} does not say which data the run used ({error}); measure {source}/model instead."
        ) from error


if __name__ == "__main__":
    main()
