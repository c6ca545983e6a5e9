"""`python -m cifar100_tk.hub build|check|push|space`: publish a run on the Hugging Face Hub, measured again before it goes up."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

import tyro

from cifar100_tk import atomic, card
from cifar100_tk.card import SPLITS, Json, read_json
from cifar100_tk.errors import CifarError, ConfigError, DataError, StoppedError, exit_with_sentence
from cifar100_tk.single_process import refuse_several

# torch, timm and huggingface_hub take seconds to import; they are imported when the arguments are known to be good.

PROGRAM = "python -m cifar100_tk.hub"
PUBLISHED = re.compile(
    r"README\.md|config\.json|model\.safetensors|recipe\.json|metrics\.jsonl|environment\.json"
    rf"|evaluation/(?:{'|'.join(SPLITS)})\.json|report/[\w-]+\.png|tensorboard/events\.out\.tfevents\.\d+\.\d+"
)
"""The names that go up from a built folder. Nothing else does, whatever lies beside them."""
REQUIRED = ("config.json", "model.safetensors", "recipe.json", "metrics.jsonl")
STALE = re.compile(r"(?:evaluation|report|tensorboard)/.+")
"""What an older push of ours may have left: removed by the same commit where the new one has it not."""
STALE_OF_SPACE = re.compile(r"(?:cifar100_tk|examples)/.+")
"""The same of a Space."""
SAME_CONDITIONS, OTHER_CONDITIONS = 2e-4, 2e-3
"""Share of the pictures by which a figure may differ on the same kind of device and precision, and on another."""
TIMEOUT_SECONDS = 60.0
"""How long the Hub may be silent before it counts as not reachable."""


class HubError(CifarError, RuntimeError):
    """The Hub cannot be reached, does not accept the token, or refuses what was asked."""

    exit_code: ClassVar[int] = 8


# The command line


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Which pictures the figures are measured again on; if not given, those of the run."""

    source: str | None = None
    """hub, shapes100, or the path of a local copy, which must hold the pictures that the run had."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What building and pushing have in common."""

    data: DataChoice = field(default_factory=DataChoice)
    """The pictures."""
    check: bool = True
    """Measure again in a fresh process before anything goes up; with --no-check the card says that nobody did."""
    register: Path | None = None
    """A Python file to run first, such as the recipe that registers a network of your own with timm."""
    license: str | None = None
    """Of the weights, as the Hub names it; if not given what an existing card says, else apache-2.0."""

    def __post_init__(self) -> None:
        if self.register is not None and not self.register.is_file():
            raise ConfigError(f"--register {self.register}: there is no such file.")


@final
@dataclass(frozen=True, kw_only=True)
class Build(Checked):
    """Write the folder that a push uploads, without a network, and measure it again."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A finished run folder."""
    to: Path
    """The folder to write; it must not be there yet."""

    def execute(self) -> None:
        """Build, and say what to do next."""
        build(self.run, self.to, self)
        print(f"built {self.to}; upload it with: {PROGRAM} push {self.to} {card.PLACEHOLDER}", flush=True)


@final
@dataclass(frozen=True, kw_only=True)
class Check:
    """Load a built folder through timm, measure it again, and compare with what it claims. Exit code 3 if that differs."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A folder that `build` wrote."""
    data: DataChoice = field(default_factory=DataChoice)
    """The pictures."""
    register: Path | None = None
    """A Python file to run first, such as the recipe that registers a network of your own with timm."""
    output: Path | None = None
    """Also write to this file, as text, the sentence that the card carries."""

    def execute(self) -> None:
        """Check, and say what came out."""
        if self.register is not None:
            runpy.run_path(str(self.register))
        sentence = check(self.folder, self.data.source)
        print(sentence, flush=True)
        if self.output is not None:
            atomic.write_file(self.output, sentence.encode())


@final
@dataclass(frozen=True, kw_only=True)
class Push(Checked):
    """Upload a run, or a folder that `build` wrote, as one commit. The token is that of `hf auth login` or $HF_TOKEN."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A finished run folder, or a folder that `build` wrote."""
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """Where to, made if it is not there."""
    private: bool = False
    """Make the repository private; one that is public already is then refused."""
    revision: str | None = None
    """The branch to commit to, made from main if it is not there; main if not given."""
    create_pr: bool = False
    """Open a pull request rather than change the branch."""

    def execute(self) -> None:
        """Build if need be, check, upload."""
        push(self)


@final
@dataclass(frozen=True, kw_only=True)
class Space:
    """Write or push a Space, a page on the Hub where people try a published model."""

    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """The Space's own id."""
    model: Annotated[str, tyro.conf.arg(metavar="USER/MODEL")]
    """The published model that it shows."""
    to: Path | None = None
    """Write the Space to this folder, which must not be there yet, rather than push it."""
    private: bool = False
    """Make the Space private; one that is public already is then refused."""
    revision: str | None = None
    """Branch, tag or commit of the model to show; main if not given."""
    title: str | None = None
    """Of the Space; the model's name if not given."""
    license: str = "apache-2.0"
    """Of the Space, as the Hub names it."""
    register: Path | None = None
    """A Python file that registers a network of your own with timm, copied along."""
    examples: Path | None = None
    """A folder of pictures to offer, copied along."""

    def execute(self) -> None:
        """Build, and upload unless only a folder was asked for."""
        space(self)


def main(arguments: list[str] | None = None) -> None:
    """Run one command. arguments: those after the program's name; None takes the process's own."""
    with exit_with_sentence(PROGRAM):
        refuse_several(PROGRAM)
        command: Build | Check | Push | Space = tyro.cli(
            Annotated[Build, tyro.conf.subcommand("build")]
            | Annotated[Check, tyro.conf.subcommand("check")]
            | Annotated[Push, tyro.conf.subcommand("push")]
            | Annotated[Space, tyro.conf.subcommand("space")],
            prog=PROGRAM,
            args=sys.argv[1:] if arguments is None else arguments,
            description=__doc__,
        )
        try:
            command.execute()
        except KeyboardInterrupt as error:
            raise StoppedError("stopped before anything was published; the same command can be given again.") from error


# Building


def build(run: Path, to: Path, options: Checked) -> str:
    """Write a folder with all that is published of a run, and nothing else; it appears when it has passed the check.

    Returns the sentence that says how it was checked. Raises ConfigError for an unfinished run or a folder that is there
    already, DataError where the run is damaged or does not measure what it claims, DiskError; all leave nothing behind.
    """
    if to.exists():
        raise ConfigError(f"{to} exists already and is left as it is; choose another --to, or remove it first.")
    files = _files_of(run, options)
    with _appearing(to) as staged:
        for name, content in files.items():
            atomic.make_folder((staged / name).parent)
            atomic.write_file(staged / name, content)
        _draw(run, staged)
        checked = _checked(staged, options, data_of(run).get("source"))
        text = card.write(card.of_folder(staged, checked), license=options.license)
        atomic.write_file(staged / "README.md", text.encode())
    return checked


def _files_of(path: Path, options: Checked) -> dict[str, bytes]:
    """Return by name what is published of a run, apart from pictures and card, without the host's paths."""
    from cifar100_tk import model_folder, results

    run = results.read(path)
    if not run.finished:
        how = run.status.get("status", "of unknown state")
        raise ConfigError(
            f"{path} is not finished ({how}); only a finished run is published, the same command goes on."
        )
    if run.complaints:
        raise DataError(f"{path} is damaged: {' '.join(run.complaints)}")
    model = model_folder.find(path)
    evaluations = {split: run.evaluations[split] for split in SPLITS if split in run.evaluations}
    if run.split not in evaluations:
        evaluations[run.split] = _measured(path, run, options)
    data = run.recipe["data"]
    name = source_name(data["source"])
    environment = run.environment | ({} if run.seconds is None else {"seconds": run.seconds})
    files = {
        "config.json": _read(model / "config.json"),
        "model.safetensors": _read(model / "model.safetensors"),
        "metrics.jsonl": _read(path / "metrics.jsonl"),
        "recipe.json": _json(run.recipe | {"data": data | {"source": name}}),
    }
    files |= {
        f"evaluation/{split}.json": _json(
            result | {"model": path.resolve().name, "source": source_name(result["source"])}
        )
        for split, result in evaluations.items()
    }
    if environment:
        files["environment.json"] = _json(environment)
    # Their own names hold the host's.
    events = sorted(p for p in (path / "tensorboard").rglob("events.out.tfevents.*") if _is_plain(p, path))
    times = [re.search(r"tfevents\.(\d+)", event.name) for event in events]
    numbered = enumerate((event, time[1]) for event, time in zip(events, times, strict=True) if time)
    return files | {f"tensorboard/events.out.tfevents.{time}.{n}": _read(event) for n, (event, time) in numbered}


def source_name(source: str) -> str:
    """Return a source without the folders it lies in, which are nobody's business."""
    return source if source in ("hub", "shapes100") else Path(source).name


def data_of(run: Path) -> Json:
    """Return the data part of a run's or a built folder's recipe. Raises DataError where there is none."""
    data = read_json(run / "recipe.json").get("data")
    if not isinstance(data, dict) or not isinstance(data.get("source"), str):
        raise DataError(f"{run / 'recipe.json'} does not say which data the run used; it must be as training wrote it.")
    return data


def _measured(path: Path, run: Any, options: Checked) -> Json:
    """Measure a run that did not note its evaluation, and compare with what its last epoch reported."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "evaluation.json"
        source = [] if options.data.source is None else ["--data.source", options.data.source]
        register = [] if options.register is None else ["--register", str(options.register)]
        arguments = [str(path), "--split", run.split, *source, *register, "--output", str(output)]
        _in_fresh_process("cifar100_tk.eval", arguments)
        result = read_json(output)
    if run.measured is not None:
        claim = result | {"top1": run.measured.top1, "top5": run.measured.top5}
        compare(claim, result, exact=False, where=f"{path} at its last epoch")
    return result


def _draw(run: Path, folder: Path) -> None:
    """Put the pictures of the run's report into the folder, or say why there are none."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            from cifar100_tk import report

            report.build([run], Path(scratch) / "report")
        except (ImportError, CifarError) as error:  # What draws them is an extra of the installation.
            print(f"no pictures in the card: {error}", flush=True)
            return
        for picture in sorted(Path(scratch).rglob("*.png")):
            if PUBLISHED.fullmatch(f"report/{picture.name}"):
                atomic.make_folder(folder / "report")
                atomic.write_file(folder / "report" / picture.name, picture.read_bytes())


@contextlib.contextmanager
def _appearing(to: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets its name when all is well and is gone when not."""
    try:
        with atomic.new_folder(to.absolute()) as staged:
            yield staged
    except OSError as error:
        raise error if isinstance(error, CifarError) else atomic.disk_error(error, to, 0) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); the run folder is not whole.") from error


def _is_plain(path: Path, within: Path) -> bool:
    """Whether a file is one itself and no link to another, not through a folder either."""
    return path.is_file() and path.resolve() == within.resolve() / path.relative_to(within)


def _json(value: Json) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


# Checking


def check(folder: Path, source: str | None = None) -> str:
    """Load a built folder as a stranger would, through timm's `local-dir:`, and measure again what it claims.

    source: where the pictures are now, if not where the recipe says. Returns a sentence that says how it was measured.
    Raises DataError with both numbers where they differ.
    """
    import timm
    import torch
    from accelerate import Accelerator

    from cifar100_tk import evaluation_files, model_folder
    from cifar100_tk.launch import check_launch, check_started, use_threads

    claims = {
        split: evaluation_files.read_result(path)
        for split in SPLITS
        if (path := folder / "evaluation" / f"{split}.json").is_file()
    }
    if not claims:
        raise DataError(f"{folder} claims nothing: it has no evaluation/test.json; build it from a run folder.")
    ours = model_folder.load(folder)  # Checks every bound before timm believes config.json.
    model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True)
    theirs, expected = model.state_dict(), ours.model.state_dict()
    if theirs.keys() != expected.keys() or not all(torch.equal(theirs[name], expected[name]) for name in expected):
        raise DataError(f"{folder}: timm loads other weights than model.safetensors holds; it is not published.")
    _check_file(folder / "model.safetensors")
    check_launch()
    accelerator = Accelerator(mixed_precision=_precision_of(next(iter(claims.values())), torch.cuda.is_available()))
    check_started(accelerator)
    use_threads(accelerator.device, None)
    said = [
        _check_split(folder, split, claim, model.to(accelerator.device), ours, accelerator, source)
        for split, claim in claims.items()
    ]
    return (
        "Measured again before publishing, in a fresh process through timm from exactly these files: "
        f"{'; '.join(said)}."
    )


def _precision_of(claim: Json, on_gpu: bool) -> str | None:
    """Return Accelerate's word for the precision that a figure was measured in, as far as this machine has it."""
    words = {"float32": "no", "bf16": "bf16"} | ({"fp16": "fp16"} if on_gpu else {})
    return words.get(claim["precision"].split(" ")[0])


def _check_split(
    folder: Path, split: Any, claim: Json, model: Any, ours: Any, accelerator: Any, source: str | None
) -> str:
    """Measure one split and compare. Returns what came out, in words."""
    from cifar100_tk.data import Cifar100
    from cifar100_tk.evaluation import collect
    from cifar100_tk.launch import precision
    from cifar100_tk.scores import Scaled, Scores

    recipe = read_json(folder / "recipe.json")
    named = data_of(folder) | ({} if source is None else {"source": source})
    arguments: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in named.items() if key != "type"}
    data = Cifar100(**arguments)
    try:
        with accelerator.main_process_first():
            pictures = data.open(split)
    except CifarError as error:
        raise DataError(
            f"the figures of {folder} cannot be measured again, because the pictures cannot be had ({error}) Give "
            "--data.source PATH, or --no-check to publish them with a card that says that nobody measured them again."
        ) from error
    noted = recipe.get("pictures", {}).get("test" if split == "test" else "train", {}).get("sha256")
    if noted not in (None, pictures.identity.sha256) or pictures.identity.sentence != claim["pictures"]:
        raise DataError(
            f"{data.source} holds other pictures than {folder} was measured on ({pictures.identity.sentence}, not "
            f"{claim['pictures']}); give the --data.source that has those."
        )
    if claim["num_images"] != len(pictures):
        raise DataError(
            f"{folder} claims figures of {claim['num_images']:,} pictures, but the {split} split has {len(pictures):,}; "
            f"measure the whole: python -m cifar100_tk.eval RUN --split {split}."
        )
    predictions = collect(model, pictures, ours.normalize, accelerator=accelerator, flip=claim["flip"])
    names = (ours.class_names, pictures.coarse_names, pictures.coarse_of_fine)
    scaled = None
    if claim["temperature"] is not None:
        fitted = (float(claim["temperature"]), str(claim["temperature_fitted_on"]))
        scaled = Scaled.of(predictions.logits, predictions.labels, *fitted)
    found = Scores.of(predictions.logits, predictions.labels, *names).to_json(scaled)
    if (size := sum(each.numel() for each in model.parameters())) != claim["num_parameters"]:
        raise DataError(f"{folder} claims {claim['num_parameters']:,} parameters, but it has {size:,}.")
    here = precision(accelerator)
    there = str(card.environment_of(folder).get("device", accelerator.device.type))
    exact = here == claim["precision"] and there.startswith(accelerator.device.type)
    compare(claim, found, exact=exact, where=str(folder))
    right, count = round(found["top1"] * found["num_images"]), found["num_images"]
    claimed = round(claim["top1"] * count)
    same = "as claimed" if right == claimed else f"{claimed:,} were claimed, within the tolerance"
    return f"{right:,} of {count:,} {split} pictures right ({same}), on {accelerator.device.type} in {here}"


def _check_file(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        if file.metadata() != {"format": "pt"}:
            raise DataError(f"{path} has metadata {file.metadata()}; expected {{'format': 'pt'}}.")


def compare(claim: Json, found: Json, *, exact: bool, where: str) -> None:
    """Raise DataError, with both numbers, where a figure is not what was claimed.

    exact: whether device and precision are of the same kind, so that at most 2 in 10,000 pictures may differ, not 20.
    """
    count = found["num_images"]
    allowed = int((SAME_CONDITIONS if exact else OTHER_CONDITIONS) * count)
    for name in ("top1", "top5", "superclass_top1"):
        if name in claim:
            claimed, right = round(claim[name] * count), round(found[name] * count)
            if abs(claimed - right) > allowed:
                raise DataError(
                    f"{where} claims {name} {claim[name]:.4f} ({claimed:,} of {count:,} pictures), but it is {found[name]:.4f} "
                    f"({right:,}); at most {allowed} may differ. Nothing is published."
                )
    for name in ("loss", "ece", "loss_scaled", "ece_scaled"):
        if claim.get(name) is None:
            continue  # Without a temperature there is nothing scaled.
        measured = math.nan if found[name] is None else found[name]
        if not abs(claim[name] - measured) <= (1e-3 if exact else 2e-2) * max(1.0, abs(measured)):
            raise DataError(f"{where} claims {name} {claim[name]:.6f}, but it is {measured:.6f}. Nothing is published.")
    if "confusion" in claim:
        _compare_classes(claim, found, 10 * allowed, where)


def _compare_classes(claim: Json, found: Json, allowed: int, where: str) -> None:
    """Raise DataError where what is said of the classes is not so. allowed: pictures, of which most even out in top-1."""
    names = [each["name"] for each in found["classes"]]
    if [each["name"] for each in claim["classes"]] != names:
        raise DataError(f"{where} claims figures of other classes than the model has. Nothing is published.")
    pairs = list(itertools.product(names, names))
    counts, claimed = (dict(zip(pairs, itertools.chain(*each["confusion"]), strict=True)) for each in (found, claim))
    said = {(p["true"], p["predicted"]): p["num_images"] for p in claim["most_confused"]}
    right = {
        (c["name"], c["name"]): round(c["accuracy"] * f["num_images"])
        for c, f in zip(claim["classes"], found["classes"], strict=True)
        if c["accuracy"] is not None
    }
    for table in (claimed, said, right):
        for (true, predicted), n in table.items():
            if abs(n - counts.get((true, predicted), 0)) > allowed:
                raise DataError(
                    f"{where} claims that {n:,} pictures of {true} are taken for {predicted}, but it is "
                    f"{counts.get((true, predicted), 0):,}; at most {allowed} may differ. Nothing is published."
                )


def _checked(folder: Path, options: Checked, source: str | None) -> str:
    """Check a folder in a process that knows nothing of this one, or say that nobody did. Returns the card's sentence."""
    if not options.check:
        return "These are the run's own figures. Nobody measured them again before publishing."
    source = options.data.source or source
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "sentence"
        arguments = ["check", str(folder), "--output", str(output)]
        arguments += [] if source is None else ["--data.source", source]
        arguments += [] if options.register is None else ["--register", str(options.register)]
        _in_fresh_process("cifar100_tk.hub", arguments)
        return output.read_text()


def _in_fresh_process(module: str, arguments: list[str]) -> None:
    """Run a command of ours; its error becomes ours."""
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["it said nothing"]
        kinds = {kind.exit_code: kind for kind in (ConfigError, DataError)}
        sentence = lines[-1].removeprefix(f"python -m {module}: ")
        raise kinds.get(ended.returncode, DataError)(sentence)


# Pushing


def push(options: Push) -> None:
    """Build if need be, check, and upload as one commit. Nothing goes up before the check has passed."""
    check_id(options.repo)
    if options.create_pr and options.revision:
        raise ConfigError("--create-pr opens a pull request against main, so it takes no --revision; give one of them.")
    check_token()
    with tempfile.TemporaryDirectory() as scratch:
        folder, written = Path(scratch) / "model", ""
        if all((options.run / name).is_file() for name in REQUIRED):
            # A copy, so that what is read, checked and uploaded is the same, and nothing beside it or behind a link.
            atomic.write_folder(folder, {name: _read(path) for name, path in published(options.run).items()})
            checked = _checked(folder, options, None)
            written = _card_in(folder)
        else:
            checked = build(options.run, folder, options)
        facts = card.of_folder(folder, checked)
        upload(
            published(folder),
            options.repo,
            readme=lambda theirs: card.write(facts, options.repo, license=options.license, existing=[theirs, written]),
            private=options.private,
            revision=options.revision,
            create_pr=options.create_pr,
            message=f"{facts.architecture}, {' and '.join(facts.evaluations)}",
        )


def published(folder: Path) -> dict[str, Path]:
    """Return by name the files of a built folder that go up, and say which do not. A link to elsewhere never does."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    listed = {name: path for name, path in found.items() if PUBLISHED.fullmatch(name) and _is_plain(path, folder)}
    if missing := [name for name in REQUIRED if name not in listed]:
        raise DataError(f"{folder} has no {missing[0]} of its own; build the folder again from its run.")
    if strangers := sorted(found.keys() - listed.keys()):
        print(f"not uploaded: {', '.join(strangers)}", flush=True)
    return listed


def check_id(repo_id: str) -> None:
    """Refuse what the Hub would not take as USER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"{repo_id} is no id of a repository: {error}") from error
    if repo_id.count("/") != 1:
        raise ConfigError(f"{repo_id} is no id of a repository; give USER/NAME, or ORGANIZATION/NAME.")


def check_token() -> None:
    """Refuse to start without a token that could be one; what it says is never repeated."""
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise ConfigError(
            "there is no token of the Hub here; run hf auth login, or set HF_TOKEN to one that may write "
            "(https://huggingface.co/settings/tokens)."
        )
    # The HTTP library would repeat an impossible header, and the token with it, in its complaint.
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError("the token of the Hub has characters in it that no token has; run hf auth login again.")


def upload(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    readme: Callable[[str], str] | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str,
    repo_type: Literal["model", "space"] = "model",
    stale: re.Pattern[str] = STALE,
    timeout: float = TIMEOUT_SECONDS,
) -> str:
    """Upload files, by their names there, as one commit, and return its address.

    readme: makes README.md from the one that is there, "" where there is none; if not given it is one of the files.
    stale: names that the commit removes where they are there and not among the files.
    timeout: seconds that the Hub may be silent. Raises HubError, StoppedError; the revision that was there stays whole,
    and the same call can be made again.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    from cifar100_tk import __version__

    _do_not_wait_forever(timeout)
    api = HfApi(library_name="cifar100_tk", library_version=__version__)
    where: Any = {"repo_id": repo_id, "repo_type": repo_type}
    sdk = "gradio" if repo_type == "space" else None
    with _sentences_of_the_hub(repo_id) as doing:
        api.create_repo(**where, private=private or None, exist_ok=True, space_sdk=sdk)
        there: Any = api.repo_info(**where, timeout=timeout)
        if private and there.private is False:
            raise HubError(
                f"{repo_id} is public, and --private does not hide it; change it in its settings, then push."
            )
        if revision is not None:
            if not revision.startswith("refs/"):  # A pull request is there or not.
                api.create_branch(**where, branch=revision, exist_ok=True)
            there = api.repo_info(**where, revision=revision, timeout=timeout)
        names = {sibling.rfilename for sibling in there.siblings or []}
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(name) for name in sorted(names - files.keys()) if stale.fullmatch(name)
        ]
        contents: dict[str, Path | bytes] = dict(files)
        if readme is not None:
            theirs = _read_theirs(api, where, there.sha) if "README.md" in names else ""
            contents["README.md"] = readme(theirs).encode()
        changes += [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
        size = sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in contents.values())
        print(f"uploading {len(contents)} files, {size / 1e6:.1f} MB, to {repo_id}", flush=True)
        doing.committing = True
        commit = api.create_commit(
            **where,
            operations=changes,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            # Whoever commits in the meantime must not be overwritten.
            parent_commit=there.sha,
        )
    if commit.oid == there.sha:
        print(f"{repo_id} holds exactly this already: {commit.commit_url}", flush=True)
    else:
        print(f"pushed: {commit.pr_url or commit.commit_url}", flush=True)
    return str(commit.pr_url or commit.commit_url)


def _read_theirs(api: Any, where: Json, revision: str | None) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        api.hf_hub_download(**where, filename="README.md", revision=revision, local_dir=scratch)
        return _card_in(Path(scratch))


def _card_in(folder: Path) -> str:
    """Return README.md of a folder, "" where there is none. Raises DataError where it is no text."""
    path = folder / "README.md"
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise DataError(f"the existing README.md is not text in UTF-8 ({error}); mend it first.") from error


@functools.cache
def _do_not_wait_forever(timeout: float) -> None:
    """Let the client give up on a Hub that says nothing; by itself it waits without end."""
    from huggingface_hub import get_session, set_client_factory

    session = get_session()
    kind, hooks = type(session), session.event_hooks
    set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=timeout))


@dataclass
class _Doing:
    """How far an upload is."""

    committing: bool = False


@contextlib.contextmanager
def _sentences_of_the_hub(repo_id: str) -> Iterator[_Doing]:
    """Turn whatever the client raises into one sentence, in which no token is."""
    from huggingface_hub import get_token

    doing = _Doing()
    try:
        yield doing
    except CifarError:
        raise
    except KeyboardInterrupt as error:
        raise StoppedError(f"stopped; {_what_is_there(repo_id, doing)}") from error
    except Exception as error:  # The client raises what its HTTP library, its storage and its YAML reader raise.
        why = " ".join(_reason(error, repo_id).replace(get_token() or "\0", "***").split())
        raise HubError(f"{why}; {_what_is_there(repo_id, doing)}") from error


def _what_is_there(repo_id: str, doing: _Doing) -> str:
    if doing.committing:
        return f"{repo_id} holds the old revision or the whole new one, and the same command can be given again."
    return f"{repo_id} holds what it held before, and the same command can be given again."


def _reason(error: BaseException, repo_id: str) -> str:
    """Say what went wrong and what helps. The client wraps errors of its threads in others."""
    while not hasattr(error, "response") and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or (str(error).strip().splitlines() or [""])[0]
    if status is None and (found := re.search(r"HTTP status \w+ error \((\d{3}) ", said)):
        status = int(found[1])  # The storage library tells it in words only.
    remedies = {
        401: "the Hub does not accept the token (401); run hf auth login with one that may write",
        403: f"the token may not write to {repo_id} (403); ask for access, take a token that may, or try --create-pr",
        404: f"{repo_id} or what was asked of it is not there, or not for this token to see (404)",
        409: f"somebody else is changing {repo_id} just now (409)",
        412: f"somebody else changed {repo_id} in the meantime (412)",
        429: "the Hub asks to slow down (429); wait some minutes",
    }
    if status in remedies:
        return remedies[status]
    if status is not None and status >= 500:
        return f"the Hub has a fault of its own ({status}); try again later"
    if status is not None:
        return f"the Hub refuses this ({status}: {said})"
    return f"the Hub cannot be reached ({type(error).__name__}: {said})"


# A Space


def space(options: Space) -> None:
    """Write or push the Space of a published model; a push writes all of it anew, as one commit."""
    from cifar100_tk import space as page

    check_id(options.repo)
    check_id(options.model)
    facts = {name: getattr(options, name) for name in ("revision", "title", "license", "register", "examples")}
    if options.to is not None:
        page.build(options.model, options.to, **facts)
        print(f"built {options.to}; python app.py in it serves the page, and without --to it is pushed", flush=True)
        return
    check_token()
    with tempfile.TemporaryDirectory() as scratch:
        folder = page.build(options.model, Path(scratch) / "space", **facts)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        upload(
            files,
            options.repo,
            private=options.private,
            message=f"The page of {options.model}",
            repo_type="space",
            stale=STALE_OF_SPACE,
        )


if __name__ == "__main__":
    main()
