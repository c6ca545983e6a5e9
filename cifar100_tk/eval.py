"""`python -m cifar100_tk.eval MODEL ...`: measure run folders, model folders or Hub ids on any source and split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from cifar100_tk.cli.arguments import ModelOptions, check_output, parse
from cifar100_tk.errors import CifarError, ConfigError, exit_on_error
from cifar100_tk.ranges import BATCH, COUNT, MINUTES, check_ranges

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cifar100_tk.data import Split
    from cifar100_tk.data.cifar100_c import Cifar100C
    from cifar100_tk.evaluation.predictions import Predictions
    from cifar100_tk.evaluation.scores import Scaled
    from cifar100_tk.evaluation.targets import EvalTarget, LoadedModel

# torch, timm and Accelerate take seconds to import, so they are imported only after the arguments are validated.

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """The images to measure on; unset fields are taken from the recipe of the model's run, for RUN or RUN/model, else from
    the defaults of its data set."""

    source: str | None = None
    """hub, shapes100, or the path of a local copy; defaults to the source in the run's recipe, else hub."""
    holdout: int | None = None
    """Number of training images that were held out."""
    holdout_seed: int | None = None
    """The seed that selected the held-out images."""
    shapes100_rows: tuple[int, int] | None = None
    """The numbers of train and test images that shapes100 draws."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(ModelOptions):
    """Measure one or more models on a split: accuracy, super-classes, confusions, calibration."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """Run folders, model folders or Hub ids USER/NAME; several are compared in a table."""
    data: DataChoice = field(default_factory=DataChoice)
    """The images."""
    split: Literal["test", "holdout", "train"] = "test"
    """The split to measure on."""
    weights: Literal["ema", "raw"] | None = None
    """For run folders: the averaged weights, or the raw weights of the newest checkpoint; defaults to those that are saved
    as the model."""
    flip: bool = False
    """Test-time augmentation: average the softmax over each image and its mirror image; takes twice the time."""
    fit_temperature_on: Literal["auto", "holdout", "none"] = "auto"
    """The split to fit the temperature of the second calibration error on; auto uses holdout if images were held out."""
    cifar100_c: Path | None = None
    """Also measure on the corrupted images of CIFAR-100-C: the folder with its .npy files."""
    batch_size: Annotated[int | None, BATCH] = None
    """Images per process and forward pass; defaults to 500, or 2,000 on a GPU with 32 GB or more, and fewer for inputs
    larger than 32x32. It affects speed and memory, and the last digits of the logits if the device chooses another kernel."""
    limit_batches: Annotated[int | None, COUNT] = None
    """Measure on at most this many batches, for a quick look; of 500 images unless --batch-size is given."""
    timeout_minutes: Annotated[float, MINUTES] = 30.0
    """Minutes that a process waits for the others before it exits."""
    output: Path | None = None
    """Also write all figures to this JSON file: an object for one model, a list of objects for several."""
    predictions: Path | None = None
    """Also write a single model's prediction for each image to this parquet file: row, label, predicted, logits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_revision(*self.models)
        if not self.models:
            raise ConfigError("no MODEL given; give one or more run folders, model folders or Hub ids USER/NAME.")
        check_ranges(self, "--")
        if self.predictions is not None and len(self.models) > 1:
            raise ConfigError(
                f"--predictions works with one model, not with {len(self.models)}; run it for each of them."
            )
        if self.fit_temperature_on == self.split:
            raise ConfigError(
                "--fit-temperature-on holdout with --split holdout would report on the images it was fitted on; use --split test."
            )
        check_output("--output", self.output)
        check_output("--predictions", self.predictions)
        if (
            self.output is not None
            and self.predictions is not None
            and self.output.absolute() == self.predictions.absolute()
        ):
            raise ConfigError(f"--output and --predictions are both {self.output}; give two different files.")


def main() -> None:
    """Run the command and end the process with the exit code that fits."""
    program = "python -m cifar100_tk.eval"
    with exit_on_error(program):
        measure(parse(lambda: tyro.cli(EvalOptions, prog=program)))
        from accelerate import PartialState

        PartialState().destroy_process_group()


def evaluate(model: str | Path, **options: Any) -> dict[str, Any]:
    """Measure a model as the command does, without printing. Returns the JSON object that --output writes.

    model: a run folder, a model folder or a Hub id. options: those of `EvalOptions` and `DataChoice`, such as split="holdout" or
    source="shapes100". Raises a CifarError for everything that a user can fix, and never ends the process.
    """
    of_data = DataChoice.__dataclass_fields__.keys()
    known = (EvalOptions.__dataclass_fields__.keys() | of_data) - {"models", "data"}
    if strangers := sorted(options.keys() - known):
        raise ConfigError(f"evaluate has no option {strangers[0]}; known are {', '.join(sorted(known))}.")
    paths = {
        name: Path(options[name]) for name in ("cifar100_c", "output", "predictions", "register") if options.get(name)
    }
    data = DataChoice(**{name: options[name] for name in options.keys() & of_data})
    others = {name: options[name] for name in options.keys() - of_data}
    return measure(EvalOptions(models=(str(model),), data=data, **others | paths), show=False)[0]


def measure(options: EvalOptions, *, show: bool = True) -> list[dict[str, Any]]:
    """Measure as the options say, write the files, and print the result if it is to be shown.

    Returns the JSON object of each model.
    """
    from cifar100_tk.distributed.launch import join, use_threads
    from cifar100_tk.distributed.watchdog import watch_peers
    from cifar100_tk.evaluation import console
    from cifar100_tk.evaluation import files as evaluation_files

    options.run_registered()
    _refuse_other_files(options)
    loaded = [_loaded(model, options) for model in options.models]
    accelerator = join(options.timeout_minutes)
    use_threads(accelerator.device, None)
    with watch_peers(accelerator, options.timeout_minutes, "run the same command again"):
        subjects = _main_first(accelerator, lambda: [_opened(model, options) for model in loaded])
        measured = [_measured(subject, options, accelerator) for subject in subjects]
        accelerator.wait_for_everyone()  # A process that finishes first has not failed.
    results = [result for result, _ in measured]
    if accelerator.is_main_process:
        alone = len(results) == 1
        try:
            if options.predictions is not None:
                evaluation_files.write_predictions(options.predictions, measured[0][1])
            if options.output is not None:
                evaluation_files.write_json(options.output, results[0] if alone else results)
        finally:  # Neither a full disk nor a closed pipe loses both the files and the page.
            page = console.page(results[0], loaded[0].why_no_temperature) if alone else console.comparison(results)
            if show:
                print(page, flush=True)
    return results


def _loaded(model: str, options: EvalOptions) -> LoadedModel:
    from cifar100_tk.evaluation import targets as eval_targets

    return eval_targets.load(
        model,
        options.split,
        {name: value for name, value in vars(options.data).items() if value is not None},
        revision=options.revision,
        weights=options.weights,
        fit_temperature_on=options.fit_temperature_on,
    )


def _opened(loaded: LoadedModel, options: EvalOptions) -> EvalTarget:
    from cifar100_tk.evaluation import targets as eval_targets
    from cifar100_tk.evaluation.predictions import LIMIT_UNIT

    return eval_targets.open_images(
        loaded,
        options.split,
        batch_size=options.batch_size or LIMIT_UNIT,
        limit_batches=options.limit_batches,
        cifar100_c=options.cifar100_c,
    )


def _main_first(accelerator: Accelerator, prepare: Callable[[], T]) -> T:
    """Prepare on the main process first, then on the others, which find it done; an error there is raised on all."""
    from cifar100_tk.distributed.collectives import raise_on_all_ranks

    prepared: list[T] = []
    error = None
    if accelerator.is_main_process:
        try:
            prepared.append(prepare())
        except CifarError as caught:
            error = caught
    raise_on_all_ranks(accelerator, error)
    return prepared[0] if prepared else prepare()


def _measured(
    subject: EvalTarget, options: EvalOptions, accelerator: Accelerator
) -> tuple[dict[str, Any], Predictions]:
    """Measure one model. Returns its JSON and its predictions. Every rank takes part."""
    from cifar100_tk.distributed.memory import batch_oom_as_error
    from cifar100_tk.evaluation import measure
    from cifar100_tk.evaluation.predictions import forward_batch, predict

    loaded, held_out = subject.loaded, subject.held_out
    forward: dict[str, Any] = {
        "normalize": loaded.classifier.normalize,
        "image_size": loaded.classifier.image_size,
        "accelerator": accelerator,
        "batch_size": options.batch_size,
        "flip": options.flip,
    }
    network = loaded.classifier.model.to(accelerator.device)

    def predictions(images: Split) -> Predictions:
        return predict(network, images, **forward)

    batch_size = options.batch_size or forward_batch(accelerator.device, loaded.classifier.image_size)
    with batch_oom_as_error(batch_size):
        found = measure.measure(
            network,
            subject.split,
            name=loaded.name,
            source=loaded.data.source,
            weights=loaded.weights,
            scale=lambda reported: None if held_out is None else _scaled(reported, predictions(held_out)),
            **forward,
        )
        worse = {} if subject.cifar100_c is None else {"corruptions": _robustness(subject.cifar100_c, predictions)}
    return found.result | worse, found.predictions


def _scaled(reported: Predictions, held_out: Predictions) -> Scaled | None:
    """Return the calibration with a temperature fitted on held-out images; None if their logits are not finite."""
    from cifar100_tk.evaluation.scores import Scaled, fit_temperature

    if not held_out.logits.isfinite().all(dim=1).any():
        return None
    temperature = fit_temperature(held_out.logits, held_out.labels)
    return Scaled.of(reported.logits, reported.labels, temperature, "holdout")


def _robustness(published: Cifar100C, predictions: Callable[[Split], Predictions]) -> dict[str, Any]:
    """Measure top-1 on every corruption at every severity. Returns the JSON under "corruptions"."""
    from tqdm import tqdm

    from cifar100_tk.data.cifar100_c import PUBLISHED, SEVERITIES
    from cifar100_tk.evaluation.metrics import true_ranks

    top1: dict[str, list[float]] = {}
    for name in tqdm(published.names, desc="corruptions", leave=False, disable=None):
        found = [predictions(published.corrupted(name, severity)) for severity in SEVERITIES]
        top1[name] = [(true_ranks(each.logits, each.labels) == 0).double().mean().item() for each in found]
    means = {name: sum(values) / len(values) for name, values in top1.items()}
    usual = [means[name] for name in PUBLISHED[:15] if name in means]
    return {
        "source": f"CIFAR-100-C in {published.folder}",
        "severities": list(SEVERITIES),
        "top1": top1,
        "mean_top1": sum(means.values()) / len(means),
        "mean_top1_of_15": sum(usual) / 15 if len(usual) == 15 else None,
    }


def _refuse_other_files(options: EvalOptions) -> None:
    """Raise ConfigError instead of replacing a file that no earlier evaluation wrote, unless it is empty."""
    from cifar100_tk.evaluation import files as evaluation_files

    for option, path, is_ours, content in (
        ("--output", options.output, evaluation_files.holds_results, "figures"),
        ("--predictions", options.predictions, evaluation_files.holds_predictions, "predictions"),
    ):
        if path is not None and path.exists() and path.stat().st_size and not is_ours(path):
            raise ConfigError(
                f"{option} {path} already exists and does not hold the {content} of an earlier evaluation, so it is not "
                "overwritten; give another name, or remove it first."
            )


if __name__ == "__main__":
    main()
