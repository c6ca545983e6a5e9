"""A run folder is new, or goes on, or is refused and left as it is; one process writes it at a time."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import other_writer
from runs import TINY, contents

from cifar100_tk.errors import ConfigError, DiskError, LockedError, ResumeError
from cifar100_tk.optim import Distillation
from cifar100_tk.recipe import Recipe, flatten, to_json
from cifar100_tk.runs import checkpoint, run_folder
from cifar100_tk.runs.files import read_status
from cifar100_tk.runs.run_config import RESUME_KEYS, RUNTIME_KEYS
from cifar100_tk.runs.run_folder import RunFolder, describe_resume, open_run, validate_run_dir
from cifar100_tk.training.plan import RunOptions

RECIPE: dict[str, Any] = {"epochs": 2, "optimizer": {"type": "SGD", "lr": 0.1}, "augment": [{"p": 0.5}]}


def opened(path: Path, recipe: dict[str, Any] = RECIPE) -> RunFolder:
    return open_run(path, recipe, "auto")


def unfinished(path: Path, steps: tuple[int, ...] = (5, 10)) -> Path:
    """A run that was stopped, with its checkpoints."""
    run = opened(path)
    for step in steps:
        checkpoint.save(run.checkpoints, step, {"model": {"w": torch.ones(1) * step}}, {}, keep=9)
        run.log({"epoch": step // 5, "step": step, "train/loss": 1.0})
    run.set_status("stopped", step=steps[-1])
    run.lock.release()
    return path


def test_a_new_folder_gets_the_recipe_and_starts_at_the_beginning(tmp_path: Path) -> None:
    run = opened(tmp_path / "deep" / "run")
    assert run.checkpoint is None and run.complaints == []
    assert json.loads((run.path / "recipe.json").read_text()) == RECIPE
    assert (run.checkpoints, run.model) == (run.path / "checkpoints", run.path / "model")


def test_an_unfinished_run_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    run = opened(unfinished(tmp_path / "run"))
    assert run.checkpoint is not None and run.checkpoint.step == 10
    assert run.checkpoint.tensors["model"]["w"].item() == 10


def test_a_run_that_died_before_its_first_checkpoint_starts_at_the_beginning(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.set_status("running", step=0)
    run.lock.release()
    assert opened(tmp_path).checkpoint is None


def test_a_damaged_checkpoint_is_passed_over_with_a_complaint(tmp_path: Path) -> None:
    path = unfinished(tmp_path)
    (path / "checkpoints" / "step-00000010" / "model.safetensors").write_bytes(b"")
    run = opened(path)
    assert run.checkpoint is not None and run.checkpoint.step == 5
    assert [sentence for sentence in run.complaints if "step-00000010/model.safetensors" in sentence] == run.complaints
    assert len(run.complaints) == 1


def test_without_any_valid_checkpoint_the_run_stops(tmp_path: Path) -> None:
    path = unfinished(tmp_path)
    for step in (5, 10):
        (path / "checkpoints" / f"step-{step:08d}" / "manifest.json").unlink()
    with pytest.raises(ResumeError, match=r"no valid checkpoint in .*step-00000010.*step-00000005.*Start again with"):
        opened(path)
    assert ResumeError.exit_code == 4


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    path = unfinished(tmp_path)
    (path / ".tmp-run_status.json").touch()
    (path / "evaluation").mkdir()
    (path / "evaluation" / ".tmp-test.json").touch()
    (path / "checkpoints" / ".tmp-step-00000015").mkdir()
    opened(path)
    assert not [p for p in path.rglob(".tmp-*")]


def refused(path: Path, message: str, recipe: dict[str, Any] = RECIPE, resume: Any = "auto") -> None:
    """Assert that the folder is refused by both functions, with this message, and left as it is."""
    before = contents(path) if path.is_dir() else path.read_bytes()
    for refuse in (validate_run_dir, open_run):
        with pytest.raises(ConfigError, match=message):
            refuse(path, recipe, resume)
    assert (contents(path) if path.is_dir() else path.read_bytes()) == before


def test_another_recipe_is_refused_with_every_number_that_differs(tmp_path: Path) -> None:
    other = {"epochs": 3, "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}, "augment": [{"p": 0.25}]}
    message = (
        r"holds a run of another recipe: augment.0.p was 0.5 and is 0.25; epochs was 2 and is 3; "
        r"optimizer.momentum was 'absent' and is 0.9\. Choose another --output-dir"
    )
    refused(unfinished(tmp_path), message, recipe=other)


def test_a_run_of_an_earlier_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = unfinished(tmp_path)
    (path / "recipe.json").write_text(json.dumps({"augment": [{"type": "Crop"}]}))
    refused(path, r"holds a run of another recipe: .*augment.0.type was 'Crop' and is .* Choose another --output-dir")


def test_every_part_of_a_recipe_and_every_option_must_match_or_may_change() -> None:
    # A new one belongs into one of the two sets of run_folder.py: think about what a run that goes on would do with it.
    recipe, options = ({field.name for field in fields(kind)} for kind in (Recipe, RunOptions))
    assert not RESUME_KEYS & RUNTIME_KEYS and not recipe & options
    inner = {name for name in RUNTIME_KEYS if "." in name}
    assert (
        recipe | options | {"type", "images", "teacher", "extended", "pretrained"} == RESUME_KEYS | RUNTIME_KEYS - inner
    )
    whole = replace(TINY, distillation=Distillation(teacher="any"))
    assert recipe - {"reference"} < RESUME_KEYS and inner < flatten(to_json(whole)).keys()


def test_every_number_of_a_recipe_is_compared(tmp_path: Path) -> None:
    recipe = to_json(TINY) | {"limit_train_batches": None, "images": {}, "pretrained": {"sha256": "1f"}}
    assert recipe.keys() == RESUME_KEYS - {"teacher", "extended"}
    path = unfinished(tmp_path / "run")
    (path / "recipe.json").write_text(json.dumps(recipe))
    validate_run_dir(path, recipe, "auto")
    names = {name: old for name, old in flatten(recipe).items() if name not in RUNTIME_KEYS}
    assert len(names) > 30 and {"data.holdout", "optimizer.momentum", "augment.0.scale.1", "seed"} <= names.keys()
    for name, old in names.items():
        *parents, last = name.split(".")
        changed = json.loads(json.dumps(recipe))
        part: Any = changed
        for key in parents:
            part = part[int(key) if isinstance(part, list) else key]
        part[int(last) if isinstance(part, list) else last] = "new"
        with pytest.raises(
            ConfigError, match=rf"another recipe: {re.escape(f'{name} was {old!r}')} and is 'new'\. Choose"
        ):
            validate_run_dir(path, changed, "auto")


def images(sha256: str, rows_sha256: str, source: str = "a", **more: Any) -> dict[str, Any]:
    """A recipe with these training images."""
    identity = {"sha256": sha256 * 32, "rows_sha256": rows_sha256 * 32, "count": 100, "sentence": ""}
    return RECIPE | {"data": {"source": source}, "images": {"train": identity} | more}


def stopped_with(path: Path, recipe: dict[str, Any]) -> Path:
    opened(path, recipe).lock.release()
    return path


def test_the_same_images_elsewhere_go_on_and_the_new_place_is_noted(tmp_path: Path) -> None:
    path, moved = stopped_with(tmp_path, images("1f", "2e")), images("1f", "2e", source="b")
    validate_run_dir(path, {name: part for name, part in moved.items() if name != "images"}, "auto")  # Not known yet.
    assert json.loads((path / "recipe.json").read_text())["data"] == {"source": "a"}
    opened(path, moved)
    assert json.loads((path / "recipe.json").read_text()) == moved


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            images("3d", "4c"),
            r"holds a run with other train images: they were 100 of a \(sha256 1f1f1f1f1f1f1f1f\) and are 100 of a "
            r"\(sha256 3d3d3d3d3d3d3d3d\)\. Give the --data\.source with the original images, or choose another --outp",
        ),
        (
            images("1f", "4c", source="b"),
            r"100 of a \(sha256 1f1f1f1f1f1f1f1f\) and are 100 of b \(sha256 1f1f1f1f1f1f1f1f\), the same in another order\.",
        ),
        (
            images("1f", "2e", test={"count": 7, "sha256": "5b", "rows_sha256": "6a"}),
            r"other test images: they were absent of a \(sha256 absent\) and are 7 of a \(sha256 5b\)\. Give",
        ),
    ],
    ids=["others", "another order", "a split that was not known"],
)
def test_other_images_are_refused_wherever_they_are(now: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(stopped_with(tmp_path, images("1f", "2e")), message, recipe=now)


def test_a_dry_run_says_what_the_run_would_do_with_the_folder_and_changes_nothing(tmp_path: Path) -> None:
    assert describe_resume(tmp_path / "new", RECIPE, "auto") == "  starts         at the first step"
    path = unfinished(tmp_path / "run")
    before = contents(path)
    newest = path / "checkpoints" / "step-00000010"
    assert describe_resume(path, RECIPE, "auto") == f"  resumes from   step 10, {newest}"
    with pytest.raises(ConfigError, match="holds a run of another rec"):
        describe_resume(path, RECIPE | {"epochs": 3}, "auto")
    with pytest.raises(ConfigError, match="holds a run already; choose another"):
        describe_resume(path, RECIPE, "never")
    assert contents(path) == before
    (newest / "manifest.json").unlink()
    assert describe_resume(path, RECIPE, "auto") == f"  resumes from   step 5, {path / 'checkpoints' / 'step-00000005'}"
    for step, name in ((5, "step-00000005"), (10, ".bad-step-00000010")):
        (path / "checkpoints" / f"step-{step:08d}").rename(path / "checkpoints" / name)
    assert describe_resume(path, RECIPE, "auto").startswith("  resumes from   step 5,")
    shutil.rmtree(path / "checkpoints" / "step-00000005")
    with pytest.raises(ResumeError, match=r"no valid checkpoint in .*checkpoints; choose another --output-dir"):
        describe_resume(path, RECIPE, "auto")
    with pytest.raises(ResumeError, match="no valid checkpoint in"):  # As it will be.
        opened(path)


def test_what_another_wrote_while_the_lock_was_waited_for_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = run_folder._locked

    def late(path: Path) -> Any:
        (path / "thesis.tex").touch()
        return locked(path)

    monkeypatch.setattr(run_folder, "_locked", late)
    with pytest.raises(ConfigError, match=r"is not a run folder \(it holds thesis.tex\)"):
        opened(tmp_path)


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.set_status("finished", step=10)
    run.lock.release()
    refused(
        tmp_path,
        "holds a finished run, which is never overwritten; give --extend-to for more epochs, or choose another --output",
    )


def test_resume_never_refuses_an_unfinished_run(tmp_path: Path) -> None:
    message = "holds a run already; choose another --output-dir, or --resume auto to resume it"
    refused(unfinished(tmp_path), message, resume="never")


def test_resume_never_takes_a_new_folder(tmp_path: Path) -> None:
    assert open_run(tmp_path / "run", RECIPE, "never").checkpoint is None


def test_a_strangers_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    refused(
        tmp_path, r"is not a run folder \(it holds thesis.tex\), and is left unchanged; choose another --output-dir"
    )


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    refused(tmp_path / "file", "file is a file; give --output-dir a folder")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert opened(tmp_path).checkpoint is None


def test_a_recipe_that_cannot_be_read_stops_the_run(tmp_path: Path) -> None:
    path = unfinished(tmp_path)
    for content, message in (
        ("{", "recipe.json cannot be read"),
        ("[]", "recipe.json must hold a JSON object, not a list"),
    ):
        (path / "recipe.json").write_text(content)
        with pytest.raises(ResumeError, match=f"{message}.*start again with another --output-dir"):
            opened(path)


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"cannot write .*/file/runs \(Not a directory\): choose another folder\."):
        opened(tmp_path / "file" / "runs")


def test_a_run_that_another_process_writes_is_refused_until_that_one_is_dead(tmp_path: Path) -> None:
    path = unfinished(tmp_path)
    with other_writer(path) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        before = contents(path)
        with pytest.raises(LockedError, match=rf"process \d+ on .* is writing {path}; wait for it, or choose another"):
            opened(path)
        assert contents(path) == before and LockedError.exit_code == 7
        process.kill()
        process.wait(timeout=30)
        run = opened(path)
    assert run.checkpoint is not None and run.checkpoint.step == 10


def test_an_open_run_keeps_another_process_out_until_it_is_released(tmp_path: Path) -> None:
    run = opened(tmp_path)
    said = []
    for _ in range(2):
        with other_writer(tmp_path) as process:
            said.append(process.communicate(timeout=30)[0])
        run.lock.release()
    assert said == ["refused\n", "writing\n"]


def test_lines_that_will_be_written_again_are_dropped(tmp_path: Path) -> None:
    run = opened(tmp_path)
    for step in (5, 10, 15):
        run.log({"epoch": step // 5, "step": step, "train/loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')  # Killed while it wrote.
    assert run.forget_after(12) == 0
    kept = (tmp_path / "metrics.jsonl").read_text()
    assert kept == '{"epoch": 1, "step": 5, "train/loss": 0.5}\n{"epoch": 2, "step": 10, "train/loss": 0.5}\n'
    run.log({"epoch": 3, "step": 15, "train/loss": 0.5})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [5, 10, 15]


@pytest.mark.parametrize("damage", [b"\xe5", b"\0", b"}", b"[", b""], ids=repr)
def test_a_damaged_line_is_dropped_and_counted(damage: bytes, tmp_path: Path) -> None:
    run, file = opened(tmp_path), tmp_path / "metrics.jsonl"
    for step in (5, 10, 15):
        run.log({"epoch": step // 5, "step": step})
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + damage + second[1:] + third)
    assert run.forget_after(15) == 1
    assert file.read_bytes() == first + third


def test_a_last_line_that_lost_its_end_is_kept(tmp_path: Path) -> None:
    run, file = opened(tmp_path), tmp_path / "metrics.jsonl"
    for step in (5, 10):
        run.log({"epoch": step // 5, "step": step})
    whole = file.read_bytes()
    file.write_bytes(whole.removesuffix(b"\n"))
    assert run.forget_after(10) == 0
    assert file.read_bytes() == whole


def test_steps_from_the_checkpoint_on_are_logged_again(tmp_path: Path) -> None:
    run, file = opened(tmp_path), tmp_path / "steps.jsonl"
    run.log_steps([])
    assert not file.exists()
    run.log_steps([{"step": step, "train/step_loss": 4.5} for step in (10, 20, 30)])
    assert run.forget_after(25) == 0
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [10, 20]


def test_forgetting_where_nothing_was_logged_makes_no_file(tmp_path: Path) -> None:
    assert opened(tmp_path).forget_after(0) == 0
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_status_that_is_missing_or_damaged_says_nothing(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    for content in ("", "[1]", '{"status": '):
        (tmp_path / "run_status.json").write_text(content)
        assert read_status(tmp_path) == {}
    opened(tmp_path / "run").set_status("stopped", step=7)
    status = read_status(tmp_path / "run")
    assert (status["status"], status["step"]) == ("stopped", 7) and {"host", "pid"} <= status.keys()
