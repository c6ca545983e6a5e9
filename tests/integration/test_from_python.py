"""What somebody writes who trains from Python: a path as a string, a thread of one's own, a network of one's own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import PIL.Image
import pytest
import torch
from runs import TINY, assert_same_tensors, cpu, lines, newest, run, status, tiny

import cifar100_tk
from cifar100_tk.data import Cifar100
from cifar100_tk.errors import ConfigError, DataError
from cifar100_tk.eval import evaluate
from cifar100_tk.models import registered_by
from cifar100_tk.train import main, train
from cifar100_tk.training.plan import RunOptions

ROOT = Path(__file__).parents[2]
OWN = """
import sys
from dataclasses import replace
from timm.models import create_model, register_model
from cifar100_tk.models import TimmModel
from cifar100_tk.train import main
sys.path.insert(0, {tests!r})

@register_model
def my_net(pretrained=False, **options):
    return create_model("test_convnext2", **options)

if __name__ == "__main__":
    from runs import TINY
    main(replace(TINY, epochs=1, model=TimmModel(name="my_net")))
"""


def test_a_thread_trains_too(tmp_path: Path) -> None:
    with cpu():
        thread = threading.Thread(target=run, args=(tmp_path / "run", tiny(epochs=1)))
        thread.start()
        thread.join(timeout=120)
    assert status(tmp_path / "run")["status"] == "finished"


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    # In a process of its own: here jaxtyping would see the type first.
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r}); from runs import TINY; "
        "from cifar100_tk.training.plan import RunOptions; from cifar100_tk.train import train; "
        "train(TINY, RunOptions(output_dir='run', limit_train_batches=1))"
    )
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert status(tmp_path / "run")["status"] == "finished"


def test_the_package_lists_what_it_offers() -> None:
    assert "load" in dir(cifar100_tk) and callable(cifar100_tk.load)


def test_a_split_is_shown_in_a_line() -> None:
    split = Cifar100(source="shapes100", shapes100_rows=(1000, 100), holdout=100).open("train")
    assert repr(split) == "Split(train: 900 of 1,000 images, shapes100, built in)"


def test_a_network_of_ones_own_is_measured_again_by_the_command_that_is_printed(tmp_path: Path) -> None:
    (tmp_path / "my net.py").write_text(OWN.format(tests=str(Path(__file__).parents[1] / "support")))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "my net.py", "--output-dir", "a run"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    again = ended.stdout.partition("measure it again with: ")[2].strip()
    program, *arguments = shlex.split(again)
    assert program == "python" and arguments[-2:] == ["--register", str(tmp_path / "my net.py")]
    ended = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0 and "top-1" in ended.stdout, ended.stderr


def test_networks_of_timm_and_ours_need_no_file() -> None:
    assert registered_by("resnet18") is None and registered_by("resnet50_cifar") is None


def test_a_contact_sheet_replaces_nothing(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"mine")
    with pytest.raises(
        ConfigError, match=r"sheet\.png is an existing file and is not overwritten; give another name, or remove it"
    ):
        RunOptions(contact_sheet=sheet)
    with pytest.raises(ConfigError, match=r"--contact-sheet \. is a folder; give the name of a file in it"):
        RunOptions(contact_sheet=Path("."))
    assert sheet.read_bytes() == b"mine"


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
SMALLER = {
    "recipe, epochs=2)": "recipe, epochs=1, batch_size=40, reference=(), data=SMALL)",
    'split="test"': 'split="test", batch_size=50',
    "shapes100_rows=(1000, 100)": "shapes100_rows=(200, 100)",
}


def test_the_examples_in_the_documents_run_one_after_the_other(tmp_path: Path) -> None:
    program = "\n".join(block for block in BLOCKS if "main(" not in block)
    for old, new in SMALLER.items():
        assert old in program
        program = program.replace(old, new)
    head = 'from cifar100_tk.data import Cifar100\nSMALL = Cifar100(source="shapes100", shapes100_rows=(100, 100))\n'
    (tmp_path / "examples.py").write_text(head + program)
    PIL.Image.new("RGB", (64, 48), "green").save(tmp_path / "photo.jpg")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "examples.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "quickstart" not in done.stdout and "run, seed 0" in done.stdout
    assert len(re.findall(r"epoch [12]: loss \d\.\d{3}\n", done.stdout)) == 2
    assert re.search(r"^(\w+ \w+ \d+\.\d %, ){4}\w+ \w+ \d+\.\d %$", done.stdout, re.MULTILINE)
    assert status(tmp_path / "runs" / "first")["status"] == "finished"


@pytest.mark.usefixtures("on_cpu")
def test_a_recipe_file_gets_the_metrics_of_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [block] = [block for block in BLOCKS if "main(recipe, on_epoch_end=show)" in block]
    monkeypatch.setattr(sys, "argv", ["mine.py", "--output-dir", str(tmp_path / "run"), "--quiet"])
    exec(block, {"__name__": "__main__", "recipe": TINY, "main": main})
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shown = [f"{line['epoch']} {line['train/loss']} {line.get('test/top1')}" for line in records]
    assert capsys.readouterr().out.splitlines()[:2] == shown and shown[0].startswith("1 ")


@pytest.mark.usefixtures("on_cpu")
def test_on_epoch_end_cannot_change_the_run_and_its_error_ends_it_resumably(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain", tmp_path / "run"
    run(plain, eval_every=1, checkpoint_every=1)

    def meddling(line: dict[str, float]) -> None:
        if line["epoch"] == 2:
            raise ZeroDivisionError("mine")
        line.clear()
        torch.manual_seed(7)

    with pytest.raises(ZeroDivisionError, match=r"^mine$"):
        train(TINY, output_dir=path, eval_every=1, checkpoint_every=1, on_epoch_end=meddling)
    assert {"status": "failed", "reason": "mine"}.items() <= status(path).items()
    seen: list[dict[str, float]] = []
    metrics = train(TINY, output_dir=path, eval_every=1, checkpoint_every=1, on_epoch_end=seen.append)
    assert_same_tensors(newest(path), newest(plain))
    assert lines(path) == lines(plain) and [line["epoch"] for line in seen] == [2]
    assert metrics is not None and metrics.top1 == seen[0]["test/top1"]
    assert seen[0] == json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])


def test_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^train has no run option epochs; it is part of the recipe: give dataclasses"
    ):
        train(TINY, epochs=3)
    with pytest.raises(ConfigError, match=r"^train has no run option outputdir; known are output_dir, seeds, .*quiet"):
        train(TINY, outputdir="runs/a")
    with pytest.raises(
        ConfigError, match=r"^train trains one seed, but seeds=3; call it for each, with dataclasses\.rep"
    ):
        train(TINY, seeds=3)
    with pytest.raises(
        ConfigError, match=r"^evaluate has no option splits; known are batch_size, cifar100_c, .*split, timeout"
    ):
        evaluate("runs/a", splits="test")


@pytest.mark.usefixtures("on_cpu")
def test_evaluate_returns_what_the_command_writes_and_prints_nothing(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(finished_run, split="train", shapes100_rows=(200, 100), output=str(tmp_path / "a.json"))
    assert capsys.readouterr().out == ""
    assert result["num_images"] == 200 and result["split"] == "train"
    assert json.loads((tmp_path / "a.json").read_text()) == result
    with pytest.raises(DataError, match="is not a model"):
        evaluate(tmp_path)


def test_a_recipe_is_loaded_by_its_name_or_its_path(tmp_path: Path) -> None:
    assert cifar100_tk.load_recipe("resnet50").epochs == 200
    assert cifar100_tk.load_recipe(ROOT / "recipes" / "quickstart.py") == cifar100_tk.load_recipe("quickstart.py")
    with pytest.raises(
        ConfigError, match=r"^there is no recipe resnet51; give .*resnet50, .* or the path of a recipe file"
    ):
        cifar100_tk.load_recipe("resnet51")
    (tmp_path / "empty.py").write_text("numbers = 3\n")
    with pytest.raises(
        ConfigError, match=r"empty\.py does not define a recipe; expected recipe = Recipe\(\.\.\.\) in it"
    ):
        cifar100_tk.load_recipe(tmp_path / "empty.py")
