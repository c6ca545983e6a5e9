"""A run goes up measured again, whole and alone, through the Hub's own client to a server on the loopback, and comes back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_server
import PIL.Image
import pytest
import runs
import safetensors.torch
import torch
from hub_client import Client
from hub_server import HANG_SECONDS, STEPS, TOKEN, Hub, serving
from huggingface_hub import ModelCard
from processes import PROGRAMS

import cifar100_tk
from cifar100_tk.errors import ConfigError, DataError
from cifar100_tk.hub import card
from cifar100_tk.hub.__main__ import Push
from cifar100_tk.hub.folder import build, files_of
from cifar100_tk.hub.measurement import check
from cifar100_tk.hub.upload import MAX_CARD_BYTES
from cifar100_tk.hub.verify import compare

NAMES = {"README.md", "config.json", "environment.json", "evaluation/test.json", "metrics.jsonl", "model.safetensors"}
NAMES |= {"recipe.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of a network with running statistics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        runs.forget()
        path = tmp_path_factory.mktemp("runs") / "tiny"
        runs.run(path, runs.BATCH_NORM)
        yield path
        runs.forget()


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What points the client at the server; the cache of the Hub is that of this process, which is offline."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@pytest.fixture(scope="module")
def spoken() -> list[str]:
    """Everything that any process of this file said."""
    return []


@pytest.fixture(scope="module")
def client(environment: dict[str, str], spoken: list[str]) -> Iterator[Client]:
    with Client(environment) as client:
        yield client
        spoken.append(client.close())


@pytest.fixture(scope="module")
def built(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `build` makes of the run, unchecked; the check has its own tests."""
    folder = tmp_path_factory.mktemp("built") / "model"
    build(run, folder, check=False)
    return folder


# Building and checking


def test_the_folder_holds_what_is_published_and_nothing_of_the_host(run: Path, built: Path) -> None:
    found = runs.contents(built)
    images = {name for name in found if re.fullmatch(r"report/\w+\.png", name)}
    (events,) = (name for name in found if name.startswith("tensorboard/"))
    assert found.keys() - images == NAMES | {events}
    assert re.fullmatch(r"tensorboard/events\.out\.tfevents\.\d+\.0", events)
    host, whole = os.uname().nodename, b"".join(content for name, content in found.items() if name.endswith(".json"))
    assert str(run.parent).encode() not in whole and f'"{host}"'.encode() not in whole
    assert found["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    with safetensors.safe_open(built / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"} and "conv1.weight" in file.keys()  # noqa: SIM118
    umask = os.umask(0o022)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in built.rglob("*") if path.is_file()} == {0o666 & ~umask}
    claimed = json.loads((built / "evaluation" / "test.json").read_text())
    top1 = next(r for r in ModelCard.load(built / "README.md").data.eval_results if r.metric_name == "top-1 accuracy")
    assert top1.metric_value == claimed["top1"] == runs.status(run)["top1"]
    assert "they were not re-evaluated" in (built / "README.md").read_text()


def test_what_the_card_tells_to_type_works_each_by_itself(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PIL.Image.new("RGB", (70, 50), "green").save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    local = (built / "README.md").read_text().replace("hf-hub:", "local-dir:").replace(card.PLACEHOLDER, str(built))
    ours, timms = re.findall(r"^```python\n(.*?)^```", local, re.DOTALL | re.MULTILINE)
    exec(ours, {})
    likely = capsys.readouterr().out.rstrip("\n").split(", ")
    assert len(likely) == 5 and all(re.fullmatch(r"[a-z]+ [a-z]+ \d\.\d\s%", each) for each in likely), likely
    names: dict[str, Any] = {}
    exec(timms, names)
    assert sum(each.numel() for each in names["model"].parameters()) == 320_436


def test_a_local_source_is_published_without_the_folders_it_lies_in(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    for path in (copy / "recipe.json", copy / "evaluation" / "test.json"):
        path.write_text(path.read_text().replace('"shapes100"', '"/home/somebody/secret/images"'))
    found = files_of(copy)
    assert not any(b"somebody" in content for content in found.values())
    assert json.loads(found["recipe.json"])["data"]["source"] == "images"


def test_only_the_runs_own_trace_files_are_taken(run: Path, built: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (tmp_path / "secret").write_text(TOKEN)
    (copy / "tensorboard" / "events.out.tfevents.1.link").symlink_to(tmp_path / "secret")
    (copy / "tensorboard" / "notes.txt").write_text(TOKEN)
    (copy / ".env").write_text(TOKEN)
    found = files_of(copy)
    assert found.keys() == runs.contents(built).keys() - {"README.md"} - {
        n for n in runs.contents(built) if n[-4:] == ".png"
    }
    assert not any(TOKEN.encode() in content for content in found.values())


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda run: set_status(run, "stopped"),
            ConfigError,
            r"run is not finished \(stopped\); resume it with the same command",
        ),
        (lambda run: (run / "run_status.json").unlink(), ConfigError, r"run is not finished \(of unknown state\)"),
        (lambda run: (run / "recipe.json").unlink(), ConfigError, "run is not a run folder: it holds no recipe.json"),
        (
            lambda run: shutil.rmtree(run / "model"),
            DataError,
            "run is not a model: it does not contain model.safetensors",
        ),
        (
            lambda run: (run / "environment.json").write_text("{"),
            DataError,
            "run is damaged: environment.json is damaged",
        ),
        (lambda run: (run / "metrics.jsonl").unlink(), DataError, "run is damaged: There is no metrics.jsonl"),
        (lambda run: change("recipe.json", "data", value=None)(run), DataError, "does not say which data the run used"),
        (
            lambda run: change(TEST, "top1", value="high")(run),
            DataError,
            "test.json: top1 is 'high'; expected a fraction",
        ),
    ],
)
def test_a_run_that_is_not_whole_is_not_built(
    run: Path, tmp_path: Path, damage: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    damage(copy)
    with pytest.raises(error, match=message):
        build(copy, tmp_path / "out", check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def set_status(run: Path, status: str) -> None:
    (run / "run_status.json").write_text(json.dumps(runs.status(run) | {"status": status}))


def test_a_folder_that_is_there_already_is_left_as_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="mine already exists; choose another --to"):
        build(run, tmp_path / "mine", check=False)
    assert runs.contents(tmp_path) == {"mine/letter.txt": b"dear"}


def change(name: str, *path: str | int, value: Any) -> Callable[[Path], object]:
    """Return what sets one value in a JSON file of a built folder."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (folder / name).write_text(json.dumps(content))

    return damage


def other_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    state["fc.bias"] = state["fc.bias"] + torch.arange(len(state["fc.bias"]))
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})


def without_metadata(folder: Path) -> None:
    path = folder / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)


TEST = "evaluation/test.json"


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_weights, r"claims \w+ .*, but it is .*Nothing is published"),
        (
            change(TEST, "top1", value=0.95),
            r"test.json: top1 is 0.95, but its confusion matrix gives 0.0\d?\. Measure the model again",
        ),
        (change(TEST, "top5", value=0.99), r"claims top5 0.9900 \(99 of 100 images\), but it is 0.\d\d00"),
        (change(TEST, "superclass_top1", value=0.9), "superclass_top1 is 0.9, but its confusion matrix gives 0"),
        (change(TEST, "ece", value=0.5), r"claims ece 0.500000, but it is 0.\d+. Nothing is published"),
        (change(TEST, "loss", value=1.0), r"claims loss 1.000000, but it is 4.\d+. Nothing is published"),
        (change("config.json", "pretrained_cfg", "mean", value=[0.0, 0.0, 0.0]), r"claims \w+ .*, but it is"),
        (change("config.json", "num_classes", value=10**9), "num_classes is 1000000000; expected an integer"),
        (
            change(TEST, "num_images", value=50),
            r"num_images is 50; expected the 100 of its classes",
        ),
        (
            change(TEST, "images", value="these are the CIFAR-100 test images"),
            r"shapes100 has different images from those",
        ),
        (
            change("recipe.json", "images", "test", "sha256", value="0" * 64),
            "shapes100 has different images from those",
        ),
        (
            change("recipe.json", "data", "source", value="no/such/copy"),
            r"cannot be checked, because the images are not available \(.*no/such/copy.*\) Pass --data.source PATH, or "
            r"--no-check to publish with a card that says the figures were not re-evaluated\.",
        ),
        (change("recipe.json", "data", value=None), "recipe.json does not say which data the run used"),
        (change(TEST, "num_parameters", value=7), "claims 7 parameters but has 320,436"),
        (
            change(TEST, "classes", 3, "accuracy", value=0.7),
            r"classes.3.accuracy is 0.7, but its confusion matrix gives [01].0",
        ),
        (
            change(TEST, "classes", 3, "name", value="cat"),
            "claims figures for different classes|most_confused.* is .*, but its confusion matrix gives cat",
        ),
        (
            change(TEST, "most_confused", 0, "num_images", value=9),
            "most_confused.0.num_images is 9, but its confusion matrix gives 1",
        ),
        (
            change(TEST, "confusion", 5, 5, value=4),
            r"top1 is 0.\d+, but its confusion matrix gives 0.\d+",
        ),
        (lambda folder: shutil.rmtree(folder / "evaluation"), "has no evaluation/test.json"),
        (
            lambda folder: (folder / "recipe.json").unlink(),
            "model was not written by build; build it from a run: python -m cifar100_tk.hub build RUN --to FOLDER",
        ),
        (without_metadata, r"has metadata None; expected \{'format': 'pt'\}"),
        (change(TEST, "top1", value="high"), "test.json: top1 is 'high'; expected a fraction"),
    ],
)
def test_what_a_folder_claims_must_come_out_again(
    built: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    copy = shutil.copytree(built, tmp_path / "model")
    damage(copy)
    with pytest.raises(DataError, match=message):
        check(copy)


@pytest.mark.usefixtures("on_cpu")
def test_an_honest_folder_passes_and_the_card_says_so(built: Path, tmp_path: Path) -> None:
    right = round(100 * json.loads((built / TEST).read_text())["top1"])
    said = check(built)
    assert f": {right} of 100 test images right (as claimed), on cpu in float32." in said
    elsewhere = shutil.copytree(built, tmp_path / "model")
    change("recipe.json", "data", "source", value="no/such/copy")(elsewhere)
    assert check(elsewhere, "shapes100") == said


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("recorded", "passes"),
    [
        ({}, False),
        ({"device": "cpu (8 threads)", "compiled": False}, False),
        ({"device": "cpu (8 threads)", "compiled": True}, True),
        ({"device": "cuda:0 (NVIDIA H200)", "compiled": False}, True),
    ],
)
def test_only_a_run_measured_under_the_same_conditions_must_come_out_almost_exactly(
    built: Path, tmp_path: Path, recorded: dict[str, Any], passes: bool
) -> None:
    copy = shutil.copytree(built, tmp_path / "model")
    (copy / "environment.json").write_text(json.dumps(recorded))
    # By more than 0.001 of itself, and less than 0.02.
    change(TEST, "loss", value=1.01 * json.loads((copy / TEST).read_text())["loss"])(copy)
    if passes:
        assert "of 100 test images right (as claimed)" in check(copy)
    else:
        with pytest.raises(DataError, match=r"claims loss 4.\d+, but it is 4.\d+. Nothing is published"):
            check(copy)


@pytest.mark.parametrize(
    ("count", "exact", "off", "passes"),
    [
        (10_000, True, 2, True),
        (10_000, True, 3, False),
        (10_000, False, 20, True),
        (10_000, False, 21, False),
        (2_000, True, 1, False),
        (2_000, True, 0, True),
    ],
)
def test_figures_may_differ_by_two_images_in_ten_thousand_or_by_twenty_on_other_hardware(
    count: int, exact: bool, off: int, passes: bool
) -> None:
    claim, found = {"top1": 0.5}, {"num_images": count, "top1": 0.5 - off / count}
    if passes:
        compare(claim, found, exact=exact, where="it")
    else:
        with pytest.raises(DataError, match=rf"it claims top1 0.5000 \({count // 2:,} of .*, but it is 0.4"):
            compare(claim, found, exact=exact, where="it")


# Pushing


def test_a_push_of_a_run_is_checked_in_a_fresh_process_and_comes_back_the_same(
    run: Path, server: Hub, environment: dict[str, str], tmp_path: Path, spoken: list[str], on_cpu: None
) -> None:
    pushed = python("-m", "cifar100_tk.hub", "push", str(run), "me/whole", "--private", environment=environment)
    spoken.append(pushed)
    right = round(100 * runs.status(run)["top1"])
    assert f"{right} of 100 test images right (as claimed)" in pushed
    repository = server.model("me/whole")
    assert repository.private and repository.messages == ["initial commit", "resnet10_cifar_w16, test"]
    assert repository.head().keys() >= NAMES
    readme = repository.head()["README.md"].decode()
    assert f"{right} of 100 test images right (as claimed), on cpu" in readme and 'load("me/whole")' in readme
    # Another process reads it back by all ways; the last one does without a network.
    server.create("me/pickled").add("main", {"config.json": b"{}", "pytorch_model.bin": b"\x80"}, "pickle")
    back = python(
        str(PROGRAMS / "read_back.py"), repository.refs["main"], str(tmp_path / "out.json"), environment=environment
    )
    spoken.append(back)
    claimed, (said, result) = json.loads((run / TEST).read_text()), map(json.loads, back.splitlines()[-2:])
    assert said == [
        True,
        True,
        "me/pickled does not contain model.safetensors; only safetensors are read, never pickles such as pytorch_model.bin.",
    ]
    assert {name: result[name] for name in ("top1", "top5", "loss")} == {
        n: claimed[n] for n in ("top1", "top5", "loss")
    }
    offline = cifar100_tk.load("me/whole")
    ours = cifar100_tk.load(run)
    assert all(torch.equal(a, b) for a, b in zip(offline.model.parameters(), ours.model.parameters(), strict=True))
    assert offline.class_names == ours.class_names and offline.normalize == ours.normalize


def python(*arguments: str, environment: dict[str, str]) -> str:
    """Run Python. Returns what it said."""
    ended = subprocess.run([sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def test_only_listed_files_go_up(built: Path, server: Hub, client: Client, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "model")
    (tmp_path / "secret").write_text(TOKEN)
    for name in (
        ".env",
        "token",
        ".git/config",
        "evaluation/.env",
        "report/.png",
        "tensorboard/keys",
        "pytorch_model.bin",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(TOKEN)
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "link.png").symlink_to(tmp_path / "secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "holdout.json").write_text(TOKEN)
    (folder / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")
    (folder / "metrics.jsonl").symlink_to(tmp_path / "metrics.jsonl")
    code, text = client.command("push", str(folder), "me/listed", "--no-check")
    assert code == 3 and "model has no regular file metrics.jsonl; build the folder again" in text
    (folder / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").rename(folder / "metrics.jsonl")
    code, text = client.command("push", str(folder), "me/listed", "--no-check")
    assert code == 0, text
    assert "not uploaded: .env, .git/config, evaluation/.env, pytorch_model.bin, report/.png, report/link.png, " in text
    head = server.model("me/listed").head()
    assert head.keys() - {".gitattributes"} == runs.contents(built).keys()
    assert not any(TOKEN.encode() in content for content in head.values())


def test_what_is_behind_a_link_is_not_told_in_the_card_either(
    built: Path, server: Hub, client: Client, tmp_path: Path
) -> None:
    folder = shutil.copytree(built, tmp_path / "model")
    (tmp_path / "secret").write_text(json.dumps({"device": TOKEN}))
    for name in ("README.md", "environment.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "secret")
    code, text = client.command("push", str(folder), "me/links", "--no-check")
    assert code == 0 and "not uploaded: README.md, environment.json\n" in text, text
    head = server.model("me/links").head()
    assert "environment.json" not in head and TOKEN.encode() not in head["README.md"]
    (folder / "README.md").unlink()
    (folder / "README.md").write_bytes(b"\xff")
    code, text = client.command("push", str(folder), "me/links", "--no-check")
    assert code == 3 and "the existing README.md is not UTF-8 text" in text


def test_a_second_push_keeps_what_people_wrote_and_removes_what_is_old(
    built: Path, server: Hub, client: Client, tmp_path: Path
) -> None:
    folder = shutil.copytree(built, tmp_path / "model")
    assert client.command("push", str(folder), "me/twice", "--no-check")[0] == 0
    repository = server.model("me/twice")
    code, text = client.command("push", str(folder), "me/twice", "--no-check")
    assert code == 0 and "me/twice is already up to date" in text and len(repository.messages) == 2
    head = dict(repository.head())
    edited = head["README.md"].decode().replace("license: apache-2.0", "license: mit\nlanguage: en")
    theirs = {"README.md": f"{edited}\n## From the Hub\n".encode(), "evaluation/holdout.json": b"{}", "notes.txt": b"n"}
    repository.add("main", head | theirs, "by hand")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\n## From the folder\n")
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text() * 2)
    assert client.command("push", str(folder), "me/twice", "--no-check")[0] == 0
    now = repository.head()
    assert now.keys() == head.keys() | {"notes.txt"} and len(repository.messages) == 4
    text = now["README.md"].decode()
    assert "license: mit\n" in text and "language: en\n" in text
    assert text.split(card.END)[1].split() == ["##", "From", "the", "Hub", "##", "From", "the", "folder"]
    repository.add("main", now | {"README.md": b"---\na: [\n---\n"}, "broken")
    code, text = client.command("push", str(folder), "me/twice", "--no-check")
    assert code == 3 and "the front matter of the existing README.md is not valid YAML" in text


def test_a_card_too_large_to_be_one_is_not_downloaded(built: Path, server: Hub, client: Client) -> None:
    repository = server.create("me/long")
    theirs = repository.head() | {"README.md": b"a" * (MAX_CARD_BYTES + 1)}
    repository.add("main", theirs, "long")
    for branch in ([], ["--revision", "v2"]):
        code, text = client.command("push", str(built), "me/long", "--no-check", *branch)
        whole = "the existing README.md of me/long has 1,000,001 bytes; the limit is 1,000,000; shorten it first."
        assert code == 3 and whole in text, text
    assert not server.asked["me/long", "readme"] and repository.messages == ["initial commit", "long"]
    repository.add("main", theirs | {"README.md": b"a" * MAX_CARD_BYTES}, "less")
    assert client.command("push", str(built), "me/long", "--no-check")[0] == 0
    assert repository.head()["README.md"].count(b"a") > MAX_CARD_BYTES


def test_a_push_to_a_branch_or_as_a_pull_request_leaves_main_alone(built: Path, server: Hub, client: Client) -> None:
    repository = server.create("me/branches")
    main = repository.refs["main"]
    code, text = client.command("push", str(built), "me/branches", "--no-check", "--revision", "v2")
    assert code == 0 and repository.head("v2").keys() >= NAMES, text
    code, text = client.command("push", str(built), "me/branches", "--no-check", "--create-pr")
    assert code == 0 and "/me/branches/discussions/1" in text and repository.head("refs/pr/1").keys() >= NAMES
    assert repository.refs["main"] == main
    code, text = client.command("push", str(built), "me/branches", "--create-pr", "--revision", "v2")
    assert code == 2 and "--create-pr opens a pull request against main and cannot be combined with --revision" in text


def test_a_private_push_never_lands_in_a_public_repository(built: Path, server: Hub, client: Client) -> None:
    repository = server.create("me/open")
    code, text = client.command("push", str(built), "me/open", "--no-check", "--private")
    assert code == 8 and "me/open is public, and --private does not change that" in text
    assert repository.messages == ["initial commit"]


def test_what_differs_from_its_claim_does_not_go_up(built: Path, server: Hub, client: Client, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "model")
    change(TEST, "top1", value=0.95)(folder)
    code, text = client.command("push", str(folder), "me/liar")
    assert code == 3 and "test.json: top1 is 0.95, but its confusion matrix gives 0.0" in text
    assert "models/me/liar" not in server.repositories and text.count("\n") == 1


@pytest.mark.slow
def test_a_run_that_noted_no_evaluation_is_measured_and_compared_with_its_last_epoch(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    recorded = json.loads((copy / TEST).read_text())
    shutil.rmtree(copy / "evaluation")
    found = json.loads(files_of(copy)[TEST])
    assert {key: found[key] for key in ("top1", "top5", "loss", "ece", "images")} == {
        key: recorded[key] for key in ("top1", "top5", "loss", "ece", "images")
    }
    lines = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(re.sub(r'"test/top1": [\d.]+', '"test/top1": 0.95', lines))
    with pytest.raises(
        DataError, match=r"run at its last epoch claims top1 0.9500 \(95 of 100 images\), but it is 0.0"
    ):
        files_of(copy)


def test_without_a_usable_token_one_sentence_says_what_to_do(built: Path, server: Hub, client: Client) -> None:
    push = ("push", str(built), "me/nobody", "--no-check")
    code, text = client.command(*push, HF_TOKEN=None)
    assert code == 2 and "no Hub token found; run hf auth login, or set HF_TOKEN" in text
    impossible = "hf_With\x01AControlCharacter"
    code, text = client.command(*push, HF_TOKEN=impossible)
    assert code == 2 and "the Hub token contains invalid characters" in text and "ControlCharacter" not in text
    code, text = client.command(*push, HF_TOKEN="hf_SomebodyElses")
    assert code == 8 and "the Hub rejected the token (401)" in text and "SomebodyElses" not in text
    assert "models/me/nobody" not in server.repositories
    # As `hf auth login` leaves it.
    stored = Path(os.environ["HF_HOME"]) / "token"
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_text(TOKEN)
    try:
        code, text = client.command(*push, HF_TOKEN=None)
    finally:
        stored.unlink()
    assert code == 0 and server.model("me/nobody").messages[1:] == ["resnet10_cifar_w16, test"]
    assert client.command(*push, HF_TOKEN=TOKEN)[0] == 0


@pytest.mark.parametrize("name", ["net", "a/b/c", "me/net.git", "me/a--b", "../me", "me/"])
def test_what_is_no_id_is_refused(name: str, built: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(name)} is not a repository id"):
        Push(run=built, repo=name).execute()


def test_large_files_go_through_chunk_storage_where_the_client_has_it(
    built: Path, server: Hub, environment: dict[str, str], tmp_path: Path, spoken: list[str]
) -> None:
    hf_xet = pytest.importorskip("hf_xet", reason="the client's chunk storage is not installed")
    folder = shutil.copytree(built, tmp_path / "model")
    weights = folder / "model.safetensors"
    other_weights(folder)  # Which no test has uploaded otherwise.
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path, chunked in zip(files, hf_xet.hash_files([str(path) for path in files]), strict=True):
        server.chunked[hashlib.sha256(path.read_bytes()).hexdigest()] = (chunked.hash, path.read_bytes())
    server.cas = tmp_path / "chunks"
    chunks = environment | {"HF_HUB_DISABLE_XET": "0", "HF_HOME": str(tmp_path / "hf")}
    with Client(chunks) as client:
        code, text = client.command("push", str(folder), "me/chunked", "--no-check")
        assert code == 0 and server.asked["me/chunked", "xet"] and not server.asked["me/chunked", "batch"], text
        server.create("me/unwelcome")
        server.faults["me/unwelcome", "xet"] = 401
        weights.write_bytes(weights.read_bytes() + b" ")
        code, text = client.command("push", str(folder), "me/unwelcome", "--no-check")
        assert code == 8 and "the Hub rejected the token (401)" in text
        assert server.model("me/unwelcome").messages == ["initial commit"]
        spoken.append(client.close())
    script = "import huggingface_hub, sys; print(huggingface_hub.hf_hub_download('me/chunked', 'model.safetensors'))"
    back = Path(python("-c", script, environment=chunks).splitlines()[0])
    assert hashlib.sha256(back.read_bytes()).hexdigest() in server.chunked
    server.chunked.clear()


# A Space


def test_a_space_is_written_to_a_folder_or_pushed_as_one_commit(server: Hub, client: Client, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="a Space names the Gradio it runs on")
    to = tmp_path / "space"
    code, text = client.command("space", "me/page", "--model", "me/net", "--to", str(to))
    assert code == 0 and f"built {to}" in text and "spaces/me/page" not in server.repositories
    code, text = client.command("space", "me/page", "--model", "me/net")
    repository = server.repositories["spaces/me/page"]
    assert code == 0 and repository.sdk == "gradio" and repository.messages[1:] == ["The page of me/net"], text
    assert repository.head().keys() - {".gitattributes"} == runs.contents(to).keys() >= {"app.py", "requirements.txt"}
    repository.add("main", repository.head() | {"cifar100_tk/gone.py": b"", "mine.txt": b""}, "by hand")
    assert client.command("space", "me/page", "--model", "me/other")[0] == 0
    assert b"me/other" in repository.head()["app.py"] and len(repository.messages) == 4
    assert repository.head().keys() & {"cifar100_tk/gone.py", "mine.txt"} == {"mine.txt"}
    code, text = client.command("space", "me/page", "--model", "net")
    assert code == 2 and "net is not a repository id" in text


# Interrupted


SENTENCES: dict[int | str, str] = {
    "cut": r"the Hub cannot be reached \(\w+: .*\)",
    "hang": r"the Hub cannot be reached \(\w*Timeout\w*: .*\)",
    401: r"the Hub rejected the token \(401\); run hf auth login",
    403: r"the token has no write access to {repo} \(403\); ask for access",
    404: r"{repo} or the requested revision does not exist, or this token cannot read it \(404\)",
    409: r"someone else is changing {repo} right now \(409\)",
    412: r"someone else changed {repo} in the meantime \(412\)",
    429: r"the Hub is rate limiting this token \(429\); wait a few minutes",
    500: r"the Hub has an internal error \(500\); try again later",
}
RETRIED = ("preupload", "batch", "put", "verify")
"""Requests that the client repeats by itself when there is no answer, which takes it half a minute if there never is one."""
WRITABLE_ANYWAY = {("create", 401), ("create", 403)}
"""The repository is there already, so whether one may be created does not matter."""


def test_a_push_that_fails_at_any_request_leaves_the_old_revision_and_can_be_repeated(
    server: Hub, environment: dict[str, str], tmp_path: Path, spoken: list[str]
) -> None:
    cases: list[Case] = []
    for step in STEPS:
        for fault in SENTENCES:
            if (step, fault) == ("create", 409):
                continue  # Which every push to a repository that exists gets.
            repo = f"me/{step}-{fault}"
            server.create(repo).add("main", OLD, "old")
            once = step in RETRIED and fault in ("cut", "hang")
            server.faults[repo, step] = f"once {fault}" if once else fault
            content = tmp_path / f"{step}-{fault}"
            content.write_text(repo)
            files = {"model.safetensors": str(content), "config.json": str(content)}
            cases.append({"repo": repo, "files": files, "step": step, "fault": fault, "once": once})
    hanging, others = ([case for case in cases if (case["fault"] == "hang") == want] for want in (True, False))
    assert len(cases) == len(STEPS) * len(SENTENCES) - 1 and len(hanging) == len(STEPS)
    with Client(environment) as patient, Client(environment, HANG_SECONDS / 2) as hasty:
        patient.ask(others)
        hasty.ask(hanging)
        for case, answer in zip(hanging + others, hasty.answer() + patient.answer(), strict=True):
            assert_old_or_new(server, case, answer)
        server.faults.clear()
        patient.ask(cases)
        for case, answer in zip(cases, patient.answer(), strict=True):
            repository = server.model(case["repo"])
            assert "url" in answer and repository.messages == ["initial commit", "old", "new"], (case, answer)
            assert repository.head()["model.safetensors"] == case["repo"].encode()
            assert repository.head()["README.md"].decode().startswith("old\nnew hf-hub:")
        spoken.extend([patient.close(), hasty.close()])


Case = dict[str, Any]
OLD = {"README.md": b"old\n", "config.json": b"{}"}


def assert_old_or_new(server: Hub, case: Case, answer: dict[str, Any]) -> None:
    repository = server.model(case["repo"])
    if case["once"] or (case["step"], case["fault"]) in WRITABLE_ANYWAY:
        assert "url" in answer and repository.messages[-1] == "new", (case, answer)
        return
    assert "error" in answer and answer["code"] == 8, (case, answer)
    assert repository.messages == ["initial commit", "old"] and repository.head() == OLD, (case, answer)
    # For a file that it reads the client has a patience of its own, which is longer than the server's here.
    fault = "cut" if (case["step"], case["fault"]) == ("readme", "hang") else case["fault"]
    sentence = SENTENCES[fault].format(repo=re.escape(case["repo"]))
    there = "(has either the old revision or the complete new one|is unchanged)"
    whole = rf"{sentence}.*; {case['repo']} {there}; it is safe to run the same command again\."
    assert re.fullmatch(whole, answer["error"]), (case, answer)


def test_a_push_that_is_killed_or_stopped_leaves_the_old_revision_whole(
    built: Path, server: Hub, environment: dict[str, str], client: Client, spoken: list[str]
) -> None:
    processes = {}
    for name in (signal.SIGKILL, signal.SIGINT):
        repo = f"me/{name.name.lower()}"
        server.create(repo).add("main", OLD, "old")
        server.faults[repo, "commit"] = "hang"
        command = [sys.executable, "-m", "cifar100_tk.hub", "push", str(built), repo, "--no-check"]
        processes[name, repo] = subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    for (name, repo), process in processes.items():
        deadline = time.monotonic() + 60
        while not server.asked[repo, "commit"]:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(name)
        text, _ = process.communicate(timeout=60)
        spoken.append(text)
        assert process.returncode == (75 if name == signal.SIGINT else -signal.SIGKILL), text
        assert ("stopped; " in text) == (name == signal.SIGINT)
        assert server.model(repo).messages == ["initial commit", "old"]
        del server.faults[repo, "commit"]
        code, text = client.command("push", str(built), repo, "--no-check")
        assert code == 0 and server.model(repo).messages[1:] == ["old", "resnet10_cifar_w16, test"], text
        assert server.model(repo).head()["README.md"].decode().rstrip().endswith("old")


def test_a_commit_of_somebody_else_in_the_meantime_is_not_overwritten(
    built: Path, server: Hub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = server.create("me/race")
    answer = hub_server.Requests.commit

    def late(self: Any, **named: str) -> None:
        if len(repository.messages) == 1:
            repository.add("main", repository.head() | {"theirs.txt": b"t"}, "theirs")
        answer(self, **named)

    routes = [(m, p, s, late if s == "commit" else a) for m, p, s, a in hub_server.ROUTES]
    monkeypatch.setattr(hub_server, "ROUTES", routes)
    code, text = client.command("push", str(built), "me/race", "--no-check")
    assert code == 8 and "someone else changed me/race in the meantime (412)" in text
    assert repository.messages == ["initial commit", "theirs"]
    assert client.command("push", str(built), "me/race", "--no-check")[0] == 0
    assert "theirs.txt" in repository.head() and repository.head().keys() >= NAMES


def test_the_token_is_nowhere(
    run: Path, built: Path, server: Hub, spoken: list[str], client: Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert client.command("push", str(built), "me/last", "--no-check", HF_DEBUG="1")[0] == 0
    assert server.asked["me/last", "commit"] == 1
    assert not any(TOKEN in text for text in [*spoken, *client.said])
    folders = (run, built, Path(os.environ["HF_HOME"]))
    assert not any(TOKEN.encode() in content for folder in folders for content in runs.contents(folder).values())
    for repository in server.repositories.values():
        for files in repository.commits.values():
            assert not any(TOKEN.encode() in content for content in files.values())
