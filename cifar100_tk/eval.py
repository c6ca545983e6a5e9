"""`python -m cifar100_tk.eval MODEL ...`: measure run folders, model folders or Hub ids on any source and split."""

from __future__ import annotations

import contextlib
import dataclasses
import runpy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from cifar100_tk.errors import CifarError, ConfigError, DataError, DiskError, ResumeError, exit_with_sentence

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from cifar100_tk.data import Cifar100, Split
    from cifar100_tk.evaluation import Predictions
    from cifar100_tk.model_folder import Classifier
    from cifar100_tk.scores import Scaled

# torch, timm and Accelerate take seconds to import; they are imported when the arguments are known to be good.

Weights = Literal["ema", "raw"]
T = TypeVar("T")


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
    """Measure one or more models on a split, every picture once: accuracy, super-classes, confusions, calibration."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """Run folders, model folders, or Hub ids USER/NAME; several give a table."""
    data: DataChoice = field(default_factory=DataChoice)
    """The pictures."""
    split: Literal["test", "holdout", "train"] = "test"
    """The part of them to measure on."""
    weights: Weights | None = None
    """Of run folders: the average of the weights or the raw ones of the newest checkpoint; if not given those that are saved
    as the model."""
    flip: bool = False
    """Ask for each picture's mirror image too, and average the two softmaxes; takes twice the time."""
    fit_temperature_on: Literal["auto", "holdout", "none"] = "auto"
    """Where to fit the temperature of the second calibration error; auto is holdout where pictures were held out."""
    corruptions: bool = False
    """Also measure on the pictures made worse here: 8 corruptions at 5 severities, so it takes 40 times as long."""
    cifar100_c: Path | None = None
    """Also measure on a local copy of CIFAR-100-C, the folder of its .npy files."""
    register: Path | None = None
    """A Python file to run first, such as the recipe that registers a network of your own with timm."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    batch_size: int = 500
    """Pictures a process at a time; changes speed and memory only."""
    limit_batches: int | None = None
    """Measure on so many batches only, for a quick look."""
    timeout_minutes: float = 30.0
    """Minutes that a process waits for the others before it ends."""
    output: Path | None = None
    """Also write all figures to this file, as JSON: an object for one model, a list of them for several."""
    predictions: Path | None = None
    """Also write what one model says of each picture to this file, as parquet: row, label, predicted, logits."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("no MODEL is given; give one or more run folders, model folders or Hub ids USER/NAME.")
        for name in ("batch_size", "limit_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value} is not positive; give 1 or more.")
        if not self.timeout_minutes > 0:
            raise ConfigError(
                f"--timeout-minutes {self.timeout_minutes} is not positive; give 30, or more for slow disks."
            )
        if self.register is not None and not self.register.is_file():
            raise ConfigError(f"--register {self.register}: there is no such file.")
        if self.predictions is not None and len(self.models) > 1:
            raise ConfigError(f"--predictions takes the predictions of one model, not of {len(self.models)}.")
        if self.fit_temperature_on == self.split:
            raise ConfigError(
                "--fit-temperature-on holdout with --split holdout would report the pictures it was fitted on; report test."
            )
        if self.corruptions and self.cifar100_c is not None:
            raise ConfigError("--corruptions and --cifar100-c are two sets of pictures; measure on one at a time.")
        _check_writable("--output", self.output)
        _check_writable("--predictions", self.predictions)
        if (
            self.output is not None
            and self.predictions is not None
            and self.output.absolute() == self.predictions.absolute()
        ):
            raise ConfigError(f"--output and --predictions are both {self.output}; give each a file of its own.")


@dataclass(frozen=True)
class Loaded:
    """A model that is going to be measured, checked by itself."""

    name: str
    """As it was given."""
    classifier: Classifier
    weights: Weights | None
    """What its weights are; None where nothing says."""
    data: Cifar100
    why_no_temperature: str | None
    """None if one is fitted, on the holdout split."""


@dataclass(frozen=True)
class Subject:
    """A model with its pictures, opened and compared."""

    loaded: Loaded
    split: Split
    held_out: Split | None
    """What its temperature is fitted on; None for nothing."""
    corrupted: Corrupted | None


@dataclass(frozen=True)
class Corrupted:
    """Where a split's pictures are to be had worse."""

    source: str
    """In words."""
    names: tuple[str, ...]
    corrupt: Callable[[str, int], Split]
    """Maps a name and a severity of 1..5 to the split with its pictures corrupted."""


def main() -> None:
    """Run the command and end the process with the exit code that fits."""
    program = "python -m cifar100_tk.eval"
    with exit_with_sentence(program):
        measure(tyro.cli(EvalOptions, prog=program))
        from accelerate import PartialState

        PartialState().destroy_process_group()


def measure(options: EvalOptions) -> list[dict[str, Any]]:
    """Measure as the options say, print the result, write the files. Returns the JSON object of each model."""
    from cifar100_tk import evaluation_files, screen
    from cifar100_tk.launch import join, use_threads

    if options.register is not None:
        runpy.run_path(str(options.register))
    loaded = [_load(model, options) for model in options.models]
    accelerator = join(options.timeout_minutes)
    use_threads(accelerator.device, None)
    subjects = _main_first(accelerator, lambda: [_open(one, options) for one in loaded])
    measured = [_measured(subject, options, accelerator) for subject in subjects]
    results = [result for result, _ in measured]
    if accelerator.is_main_process:
        if len(results) == 1:
            print(screen.page(results[0], loaded[0].why_no_temperature), flush=True)
        else:
            print(screen.comparison(results), flush=True)
        if options.predictions is not None:
            evaluation_files.write_predictions(options.predictions, measured[0][1])
        if options.output is not None:
            evaluation_files.write_json(options.output, results[0] if len(results) == 1 else results)
    return results


def _load(model: str, options: EvalOptions) -> Loaded:
    """Load a model and find out which pictures it is measured on, without opening them."""
    from cifar100_tk import model_folder
    from cifar100_tk.data import Cifar100

    classifier = model_folder.load(model, revision=options.revision)
    used, given = _data_of_run(model), {k: v for k, v in vars(options.data).items() if v is not None}
    data = Cifar100(**(used | given))
    weights = _use_weights(model, classifier.model, options.weights)
    if options.split == "holdout" and not data.holdout:
        raise ConfigError(
            f"{model} does not say that pictures of train were set aside; --split holdout needs the --data.holdout "
            "and --data.holdout-seed that it was trained with, or it would be measured on pictures that it has seen."
        )
    why = _why_no_temperature(model, data, options)
    if why is None or options.split == "holdout":
        _refuse_seen_pictures(model, data, used)
    return Loaded(model, classifier, weights, data, why)


def _open(loaded: Loaded, options: EvalOptions) -> Subject:
    """Open a model's pictures, and refuse those of other classes."""
    names, split = loaded.classifier.class_names, loaded.data.open(options.split)
    if names != split.class_names:
        raise DataError(
            f"{loaded.name} knows {len(names)} classes ({names[0]}, ...), but {loaded.data.source} has "
            f"{len(split.class_names)} ({split.class_names[0]}, ...); give the --data.source that it was trained on."
        )
    held_out = loaded.data.open("holdout") if loaded.why_no_temperature is None else None
    return Subject(loaded, split, held_out, _corrupted(split, options))


def _use_weights(model: str, network: nn.Module, wanted: Weights | None) -> Weights | None:
    """Put the wanted weights into a network that has the saved ones. Returns what it then has, None where nothing says."""
    from cifar100_tk import checkpoint
    from cifar100_tk.run_folder import read_recipe

    run = Path(model)
    if not (run / "recipe.json").is_file():
        if wanted is None:
            return None
        raise ConfigError(f"--weights {wanted} needs a run folder, whose checkpoints hold both; {model} is none.")
    saved: Weights = "ema" if read_recipe(run).get("ema") else "raw"
    if wanted in (None, saved):
        return saved
    if wanted == "ema":
        raise ConfigError(f"{model} was trained without an average of the weights; leave --weights ema out.")
    found = [path for path, error in checkpoint.survey(run / "checkpoints").items() if error is None]
    if not found:
        raise DataError(
            f"{run / 'checkpoints'} holds no valid checkpoint with the raw weights; leave --weights raw out."
        )
    weights = checkpoint.read(found[-1]).tensors.get("model", {})
    if {name: value.shape for name, value in weights.items()} != {n: v.shape for n, v in network.state_dict().items()}:
        raise DataError(f"{found[-1]} is of another network than {run / 'model'}; leave --weights raw out.")
    network.load_state_dict(weights)
    return wanted


def _why_no_temperature(model: str, data: Cifar100, options: EvalOptions) -> str | None:
    """Return why no temperature is fitted, or None if one is."""
    if options.fit_temperature_on == "none":
        return "as asked"
    if data.holdout:
        return "the held-out pictures are the ones reported" if options.split == "holdout" else None
    if options.fit_temperature_on == "holdout":
        raise ConfigError(
            f"{model} does not say that pictures of train were set aside; --fit-temperature-on holdout needs the "
            "--data.holdout and --data.holdout-seed that it was trained with."
        )
    return "no pictures were held out to fit it on"


def _refuse_seen_pictures(model: str, data: Cifar100, used: dict[str, Any]) -> None:
    """Refuse a holdout that is another one than the training's."""
    for name in ("holdout", "holdout_seed"):
        if name in used and getattr(data, name) != used[name]:
            raise ConfigError(
                f"{model} was trained with {name}={used[name]}, so with {name}={getattr(data, name)} the pictures set aside "
                f"are others, which it has seen; leave --data.{name.replace('_', '-')} out."
            )


def _corrupted(split: Split, options: EvalOptions) -> Corrupted | None:
    from cifar100_tk import corruptions

    if options.cifar100_c is not None:
        published = corruptions.open_cifar100_c(options.cifar100_c, split)
        return Corrupted(f"CIFAR-100-C in {options.cifar100_c}", published.names, published.corrupt)
    if options.corruptions:
        made = "made here, not those of the published CIFAR-100-C"
        return Corrupted(made, corruptions.MADE, lambda name, severity: corruptions.corrupt(split, name, severity))
    return None


def _main_first(accelerator: Accelerator, prepare: Callable[[], T]) -> T:
    """Prepare on the main process and then on the others, which find it done; what fails there fails everywhere."""
    from cifar100_tk.launch import raise_everywhere

    prepared: list[T] = []
    error = None
    if accelerator.is_main_process:
        try:
            prepared.append(prepare())
        except CifarError as caught:
            error = caught
    raise_everywhere(accelerator, error)
    return prepared[0] if prepared else prepare()


def _measured(subject: Subject, options: EvalOptions, accelerator: Accelerator) -> tuple[dict[str, Any], Predictions]:
    """Measure one model. Returns its JSON and its predictions. Every rank takes part."""
    from cifar100_tk.evaluation import collect
    from cifar100_tk.evaluation_files import Conditions, result
    from cifar100_tk.launch import precision
    from cifar100_tk.scores import Scores

    loaded, split = subject.loaded, subject.split
    network = loaded.classifier.model.to(accelerator.device)

    def predictions(pictures: Split) -> Predictions:
        return collect(
            network,
            pictures,
            loaded.classifier.normalize,
            accelerator=accelerator,
            batch_size=options.batch_size,
            limit_batches=options.limit_batches,
            flip=options.flip,
        )

    with _out_of_memory_is_a_sentence(options.batch_size):
        started = time.perf_counter()
        found = predictions(split)
        seconds = time.perf_counter() - started
        scaled = None if subject.held_out is None else _scaled(found, predictions(subject.held_out))
        worse = {} if subject.corrupted is None else {"corruptions": _robustness(subject.corrupted, predictions)}
    conditions = Conditions(
        model=loaded.name,
        source=loaded.data.source,
        split=options.split,
        pictures=split.identity.sentence,
        precision=precision(accelerator),
        weights=loaded.weights,
        flip=options.flip,
        images_per_second=len(found.labels) / seconds,
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
    )
    names = split.class_names, split.coarse_names, split.coarse_of_fine
    return result(conditions, Scores.of(found.logits, found.labels, *names), scaled) | worse, found


def _scaled(reported: Predictions, held_out: Predictions) -> Scaled | None:
    """Return the calibration after the temperature that held-out pictures want; None where their logits are not finite."""
    from cifar100_tk.scores import Scaled, fit_temperature

    if not held_out.logits.isfinite().all(dim=1).any():
        return None
    temperature = fit_temperature(held_out.logits, held_out.labels)
    return Scaled.of(reported.logits, reported.labels, temperature, "holdout")


def _robustness(corrupted: Corrupted, predictions: Callable[[Split], Predictions]) -> dict[str, Any]:
    """Measure top-1 on every corruption at every severity. Returns the JSON under "corruptions"."""
    from tqdm import tqdm

    from cifar100_tk.corruptions import PUBLISHED, SEVERITIES
    from cifar100_tk.metrics import true_ranks

    top1: dict[str, list[float]] = {}
    for name in tqdm(corrupted.names, desc="corruptions", leave=False, disable=None):
        found = [predictions(corrupted.corrupt(name, severity)) for severity in SEVERITIES]
        top1[name] = [(true_ranks(one.logits, one.labels) == 0).double().mean().item() for one in found]
    means = {name: sum(values) / len(values) for name, values in top1.items()}
    usual = [means[name] for name in PUBLISHED[:15] if name in means]
    return {
        "source": corrupted.source,
        "severities": list(SEVERITIES),
        "top1": top1,
        "mean_top1": sum(means.values()) / len(means),
        "mean_top1_of_15": sum(usual) / 15 if len(usual) == 15 else None,
    }


@contextlib.contextmanager
def _out_of_memory_is_a_sentence(batch_size: int) -> Iterator[None]:
    import torch

    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; on a CPU there is none, only the words.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"--batch-size {batch_size} is too much for the memory of the device; use a half of it."
        ) from None


def _check_writable(option: str, path: Path | None) -> None:
    """Refuse a file that could not be written after the long work."""
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {folder}; make it first.")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give the name of a file in it.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DiskError(
            f"{option} {path} cannot be written ({error.strerror}); choose a folder that you own."
        ) from error


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
