"""The phases of benchmarks/gpu.py rehearsed on a CPU: whole, out of memory, killed in the middle and resumed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import patient

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
SMALL = ("--model", "test_resnet", "--recipe", "recipes/quickstart.py", "--batch-sizes", "4", "--steps", "2")
SHORT_RUN = (
    *("--recipe", "recipes/quickstart.py", "--model.name", "test_resnet", "--compile", "off", "--batch-size", "20"),
    *("--data.shapes100-rows", "500", "100", "--data.holdout", "100", "--limit-eval-batches", "1"),
)


def start(*arguments: object) -> subprocess.Popen[str]:
    settings = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, text=True)


def call(*arguments: object) -> tuple[int, str]:
    """Run a phase. Returns its exit code and what it printed."""
    process = start(*arguments)
    said, _ = process.communicate(timeout=600)
    return process.returncode, said


def rows(folder: Path, **key: Any) -> list[dict[str, Any]]:
    path = folder / "gpu-cpu.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in found if all(row.get(name) == value for name, value in key.items())]


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, "it ended before"
        time.sleep(0.05)


def test_check_says_what_the_machine_is_and_can_do(tmp_path: Path) -> None:
    code, said = call("check", "--output", tmp_path, *SMALL)
    assert code == 0, said
    ceilings, doctor, profile, *tests = rows(tmp_path, phase="check")
    assert ceilings["copy_bytes_per_second"] > 1e8 and ceilings["matmul_flop_per_second"] > 1e6
    assert "no problems found" in doctor["text"] or "advice:" in doctor["text"]
    assert profile["step_ms"] > profile["kernels_ms"] > 0 and profile["kernels_a_step"] > 100
    assert [top["ms_a_step"] for top in profile["top"]] == sorted(
        (top["ms_a_step"] for top in profile["top"]), reverse=True
    )
    assert any("convolution" in top["kernel"] for top in profile["top"])
    assert [row["file"] for row in tests] == ["test_gpu.py", "test_predict.py"]
    assert tests[0]["skipped"] > 20 and tests[1]["skipped"] == 1  # There is no GPU here.
    assert all(row["passed"] == row["failed"] == row["error"] == 0 for row in tests)
    document = (tmp_path / "gpu-cpu.md").read_text()
    assert document.startswith("# CPU\n\n## check\n\n") and "convolution" in document
    for name in ("torch", "torchvision", "accelerate", "timm", "python", "code"):
        assert f"{name} {ceilings['conditions'][name]}" in document


def test_a_step_killed_in_the_middle_is_resumed(tmp_path: Path) -> None:
    phase = ("step", "--output", tmp_path, *SMALL, "--ways", "plain", "channels_last", "program")
    process = start(*phase)
    wait_until(lambda: rows(tmp_path, way="plain"), process)
    process.kill()
    process.communicate()
    with (tmp_path / "gpu-cpu.jsonl").open("a") as file:
        file.write('{"phase": "step", "way": "chan')  # A row that the kill cut short.
    code, said = call(*phase)
    assert code == 0, said
    lines = (tmp_path / "gpu-cpu.jsonl").read_text().splitlines()
    whole = [json.loads(line) for line in lines if not line.endswith("chan")]
    assert len(whole) == len(lines) - 1
    figures = {row["way"]: row for row in whole if row["phase"] == "step"}
    assert list(figures) == ["plain", "channels_last", "program"]
    for row in figures.values():
        assert row["images_per_second"] / figures["plain"]["images_per_second"] == pytest.approx(row["ratio"])
    program = figures["program"]
    step_ms = 1e3 * 4 / program["images_per_second"]
    assert program["augmentation_ms"] / step_ms == pytest.approx(program["augmentation_share"])
    assert program["augmentation_beside_ms"] > 0 and program["first_step_seconds"] > 0
    # The ceilings are kept; the plain way is measured again, since ratios are of one run.
    assert [row.get("what") or row["way"] for row in whole] == [
        "ceilings",
        "plain",
        "plain",
        "channels_last",
        "program",
    ]
    before = (tmp_path / "gpu-cpu.jsonl").read_bytes()
    code, said = call(*phase)
    assert code == 0 and " ...\n" not in said  # Nothing is left to measure.
    assert (tmp_path / "gpu-cpu.jsonl").read_bytes() == before


@pytest.mark.slow
def test_the_compiled_way_is_measured_with_an_empty_and_with_a_filled_cache(tmp_path: Path) -> None:
    code, said = call("step", "--output", tmp_path, *SMALL, "--ways", "compiled")
    assert code == 0, said
    plain, compiled = rows(tmp_path, phase="step")
    assert compiled["ratio"] == pytest.approx(compiled["images_per_second"] / plain["images_per_second"])
    assert compiled["first_step_seconds"] > 2 * compiled["warm_first_step_seconds"] > 10 * plain["first_step_seconds"]


def test_gpu_tests_are_found_in_folders_too(tmp_path: Path) -> None:
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit" / "test_a.py").write_text("@pytest.mark.gpu\n")
    (tmp_path / "test_b.py").write_text("pytestmark = [pytest.mark.gpu]\n")
    (tmp_path / "test_c.py").write_text('text = "@pytest.mark.gpu"\n')
    assert runpy.run_path(str(SCRIPT))["gpu_tests"](tmp_path) == [
        tmp_path / "test_b.py",
        tmp_path / "unit" / "test_a.py",
    ]


def test_out_of_memory_at_one_batch_size_is_a_row_and_the_next_size_is_measured(tmp_path: Path) -> None:
    sizes = ("--batch-sizes", 10**9, 4)  # 12 TB of images.
    code, said = call("step", "--output", tmp_path, "--model", "test_resnet", *sizes, "--steps", 2, "--ways", "plain")
    assert code == 0, said
    too_much, fits = rows(tmp_path, way="plain")
    assert (too_much["batch_size"], too_much["error"]) == (10**9, "out of memory")
    assert fits["batch_size"] == 4 and fits["images_per_second"] > 0
    assert f"| {10**9} | plain | out of memory |" in said


def test_a_run_stopped_by_a_kill_is_resumed_until_the_time_is_up(tmp_path: Path) -> None:
    run = tmp_path / "run"
    phase = ("train", "--output", tmp_path, "--run-dir", run, *SHORT_RUN, "--epochs", "1000")
    metrics = run / "metrics.jsonl"
    process = start(*phase)
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, process)
    process.kill()  # The run gets SIGTERM, saves and leaves its folder.
    process.communicate()
    started = time.monotonic()
    minutes = patient(0.6)
    code, said = call(*phase, "--minutes", minutes)
    assert code == 75, said
    assert time.monotonic() - started < 60 * minutes + 5
    newest = rows(tmp_path, what="call")[-1]
    assert 40 <= newest["from_step"] < newest["to_step"] and newest["exit_code"] == 75
    status = json.loads((run / "run_status.json").read_text())
    assert (status["status"], status["step"]) == ("stopped", newest["to_step"])
    assert "time was up, all saved" in said and "run the same command again to resume" in said


def test_a_finished_run_has_its_result_curve_row_and_report(tmp_path: Path) -> None:
    phase = (
        "train",
        "--output",
        tmp_path,
        "--run-dir",
        tmp_path / "run",
        *SHORT_RUN,
        "--epochs",
        "2",
        "--eval-every",
        "1",
    )
    code, said = call(*phase)
    assert code == 0, said
    (result,) = rows(tmp_path, what="result")
    assert (result["split"], result["epochs"], len(result["curve"])) == ("holdout", 2, 2)
    assert result["curve"][-1]["holdout/top1"] == result["top1"]
    assert result["wall_seconds"] > result["epoch_seconds"] > 0
    assert result["markdown"].splitlines()[-1].startswith("| `run` |") and "100 holdout" in result["markdown"]
    assert result["markdown"] in said
    (report,) = rows(tmp_path, what="report")
    assert "<html" in (tmp_path / report["file"]).read_text()
    assert "### curve of run" in (tmp_path / "gpu-cpu.md").read_text()
    assert call(*phase)[0] == 0 and len(rows(tmp_path, what="call")) == 1


def test_a_recipe_that_fails_ends_the_phase_with_its_exit_code(tmp_path: Path) -> None:
    code, said = call("train", "--output", tmp_path, "--run-dir", tmp_path / "run", "--epochs", "0")
    assert code == 1 and rows(tmp_path, what="call")[0]["exit_code"] == 2
    assert "exit code 2" in said


def test_packages_that_test_files_need_are_found_also_through_what_they_import(tmp_path: Path) -> None:
    missing = runpy.run_path(str(SCRIPT))["missing"]
    (tmp_path / "test_a.py").write_text("import json\nfrom beside import helper\nimport absent_one.part\n")
    (tmp_path / "beside.py").write_text("from absent_two import x\nimport test_a\nimport cifar100_tk\n")
    assert missing(tmp_path / "test_a.py") == ["absent_one", "absent_two"]
    assert missing(ROOT / "tests" / "integration" / "test_gpu.py") == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--minutes", "0"), "--minutes 0 is not positive; give 9, or fewer for a shorter phase."),
        (("--batch-sizes", "1"), "--batch-sizes 1 is too small to train on; give 2 or more."),
        (("--steps", "1"), "--steps 1 is too few to time; give 2 or more."),
        (("--output-dir", "x"), "--output-dir is the recipe's run folder, which train names; give --run-dir instead."),
        (("--recipe", "no.py"), "--recipe no.py is not a file; give a recipe file, such as recipes/resnet50.py."),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    arguments: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "step", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT))["main"]()
    assert end.value.code == 2 and sentence in capsys.readouterr().err
