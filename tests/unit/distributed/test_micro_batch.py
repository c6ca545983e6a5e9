"""--micro-batch auto, running out of memory, and fp16 steps that overflow: none of them changes what is learned."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from runs import SHAPES, TINY, assert_same_tensors, forget, newest, run, same_bits, status, tiny
from torch import Tensor, nn

from cifar100_tk.distributed.launch import start_accelerator
from cifar100_tk.distributed.memory import device_oom_as_error, find_micro_batch, oom_as_error
from cifar100_tk.errors import ConfigError
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import Ema
from cifar100_tk.storage import failpoint
from cifar100_tk.train import train_step
from cifar100_tk.training.plan import Plan, RunOptions
from cifar100_tk.training.state import TrainState

pytestmark = pytest.mark.usefixtures("on_cpu")


OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ELSEWHERE = [
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]
"""What torch raises where cuDNN, cuBLAS or Triton asks CUDA for memory and gets none."""


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Networks built from now on have memory for so many images while they train. Returns the sizes they were given."""

    def holds(most: int, error: RuntimeError = OOM) -> list[int]:
        build, sizes = TimmModel.build, []

        def limited(model: TimmModel, num_classes: int, image_size: int = 32) -> nn.Module:
            net = build(model, num_classes, image_size)
            forward = net.forward

            def bounded(images: Tensor) -> Any:
                if net.training:
                    sizes.append(len(images))
                    if len(images) > most:
                        raise error
                return forward(images)

            net.forward = bounded
            return net

        monkeypatch.setattr(TimmModel, "build", limited)
        return sizes

    return holds


@pytest.mark.parametrize(("most", "piece"), [(20, 20), (19, 16), (16, 16), (15, 8), (3, 2), (1, 1)])
def test_auto_takes_the_whole_share_or_the_largest_power_of_two_that_fits(
    tmp_path: Path, memory: Callable[..., list[int]], most: int, piece: int
) -> None:
    memory(most)
    accelerator = start_accelerator(tmp_path)
    state = TrainState.build(TINY, accelerator, 100, compile_model=False)
    assert find_micro_batch(state.workload(100), 20) == piece


@pytest.mark.parametrize("error", ELSEWHERE, ids=str)
def test_memory_that_runs_out_below_torch_is_searched_and_said_alike(
    tmp_path: Path, memory: Callable[..., list[int]], error: RuntimeError
) -> None:
    memory(5, error)
    accelerator = start_accelerator(tmp_path)
    state = TrainState.build(TINY, accelerator, 100, compile_model=False)
    assert find_micro_batch(state.workload(100), 20) == 4
    with (
        pytest.raises(ConfigError, match=r"rank 0 ran out of memory on cpu .* 20 images .*; --micro-batch 4 fits"),
        oom_as_error(state.workload(100), 20),
    ):
        state.net(torch.zeros(20, 3, 32, 32))
    memory(0, error)
    state = TrainState.build(TINY, accelerator, 100, compile_model=False)
    line = re.escape(str(error).splitlines()[0])
    with pytest.raises(ConfigError, match=rf"not even one image per forward pass fits .* \({line}\); check"):
        find_micro_batch(state.workload(100), 20)


def test_a_cpu_that_has_no_memory_left_is_a_sentence_too() -> None:
    with (
        pytest.raises(ConfigError, match=r"out of memory .*\(.*can't allocate memory.*\)"),
        device_oom_as_error(),
    ):
        torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("micro_batch", [None, "auto"])
def test_other_errors_of_the_device_stay_what_they_are(
    tmp_path: Path, memory: Callable[..., list[int]], micro_batch: Literal["auto"] | None
) -> None:
    memory(5, torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        run(tmp_path / "run", TINY, micro_batch=micro_batch, limit_train_batches=1)


@pytest.mark.parametrize(
    ("eager", "compiled", "found", "tried"),
    [(20, 20, 20, [20]), (7, 8, 8, [4, 8, 16]), (16, 6, 4, [16, 8, 4])],
)
def test_what_fits_is_measured_as_the_run_executes_it_and_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: int, compiled: int, found: int, tried: list[int]
) -> None:
    sizes: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        (size,) = (value.shape[0] for value in inputs if value.shape[1:] == (3, 32, 32))
        sizes.append(size)

        def ran(*values: Tensor) -> Any:
            if size > compiled:
                raise OOM
            return graph.forward(*values)

        return ran

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch._dynamo.reset()
    accelerator = start_accelerator(tmp_path)
    state = TrainState.build(TINY, accelerator, 100, compile_model=True)
    forward = state.net.forward

    def bounded(images: Tensor) -> Any:
        if not torch.compiler.is_compiling() and len(images) > eager:
            raise OOM
        return forward(images)

    state.net.forward = bounded
    assert find_micro_batch(state.workload(100), 20, compiled=True) == found
    assert sizes == tried
    plan = Plan.of(TINY, RunOptions(), accelerator, SHAPES.open("train"))
    (batch,) = plan.pipeline.batches(0, 1)
    train_step(
        state, dataclasses.replace(batch, images=batch.images[:found], targets=batch.targets[:found]), 0.1, found
    )
    assert sizes == tried  # The run uses what the search compiled.


@pytest.mark.parametrize(("processes", "said"), [(1, ""), (2, ", not compiled")])
def test_a_plan_says_whether_what_fits_was_measured_compiled(tmp_path: Path, processes: int, said: str) -> None:
    accelerator = start_accelerator(tmp_path)
    options = RunOptions(micro_batch="auto", compile="on")
    plan = dataclasses.replace(Plan.of(TINY, options, accelerator, SHAPES.open("train")), micro_batch=8)
    accelerator.state.num_processes = processes
    described = plan.describe(7, SHAPES.open("test"), tmp_path, "name")
    assert f"20 = 1 x 20 in micro-batches of 8 (the largest that fits{said})\n" in described


def test_looking_for_what_fits_changes_nothing(tmp_path: Path, memory: Callable[..., list[int]]) -> None:
    memory(5)
    accelerator = start_accelerator(tmp_path)
    recipe = tiny(model=TimmModel(name="resnet10_cifar_w16", drop_rate=0.2), ema=Ema())
    state = TrainState.build(recipe, accelerator, 100, compile_model=False)
    before = {name: tensor.clone() for name, tensor in state.net.state_dict().items()}
    generator = torch.get_rng_state()
    assert find_micro_batch(state.workload(100), 20) == 4
    after = state.net.state_dict()
    assert "bn1.running_mean" in after and all(same_bits(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), generator) and state.step == 0 and state.net.training
    assert all(parameter.grad is None for parameter in state.net.parameters())


def test_looking_for_what_fits_asks_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # After running out of memory only one process looks; another one's statistics would never come.
    accelerator, recipe = start_accelerator(tmp_path), tiny(model=TimmModel(name="resnet10_cifar_w16"))
    state = TrainState.build(recipe, accelerator, 100, compile_model=False, sync_batchnorm=True)
    forward, asked = nn.SyncBatchNorm.forward, []

    def recorded(norm: nn.SyncBatchNorm, images: Tensor) -> Tensor:
        asked.append(norm.training)
        return forward(norm, images)

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", recorded)
    assert find_micro_batch(state.workload(100), 4) == 4
    assert len(asked) > 5 and not any(asked) and all(module.training for module in state.net.modules())


def test_a_run_with_auto_is_the_run_with_that_number(
    tmp_path: Path, memory: Callable[..., list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "given", TINY, micro_batch=8)
    capsys.readouterr()
    sizes = memory(9)
    run(tmp_path / "auto", TINY, micro_batch="auto")
    assert sizes == [20, 16, 8] + [8, 8, 4] * 10
    assert "20 = 1 x 20 in micro-batches of 8 (the largest that fits)" in capsys.readouterr().out
    assert_same_tensors(newest(tmp_path / "auto"), newest(tmp_path / "given"))


def test_out_of_memory_names_what_fits_and_the_run_goes_on_with_it(
    tmp_path: Path, memory: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        # The first epoch is saved; in the second something else takes the memory.
        step = train_step

        def starved(state: TrainState, batch: Any, *options: Any) -> Any:
            if batch.step == 7 and not state.net.__dict__.get("starved"):
                forward = state.net.forward

                def bounded(images: Tensor) -> Any:
                    if len(images) > 6:
                        raise torch.OutOfMemoryError("CUDA out of memory.")
                    return forward(images)

                state.net.forward = bounded
            return step(state, batch, *options)

        patch.setattr("cifar100_tk.train.train_step", starved)
        message = (
            r"rank 0 ran out of memory on cpu \(\d+ threads?\) with 20 images per forward pass; --micro-batch 4 fits, and "
            r".*The same command with it resumes from the last checkpoint, if there is one\."
        )
        with pytest.raises(ConfigError, match=message):
            run(path, TINY, checkpoint_every=1)
    assert newest(path).step == 5 and status(path)["status"] == "failed"
    run(path, TINY, micro_batch=4)
    run(tmp_path / "whole", TINY)
    ours, theirs = newest(path).tensors["model"], newest(tmp_path / "whole").tensors["model"]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("moment", ["splits.opening", "step-00000000.polled", "step-00000001.polled"])
def test_out_of_memory_beside_the_training_steps_is_a_sentence_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def full(name: str) -> None:
        if name == moment:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd much more.")

    monkeypatch.setattr(failpoint, "reach", full)
    message = (
        r"^rank 0 ran out of memory before, between or after training steps \(CUDA out of memory\. Tried to allocate "
        r"2\.00 GiB\.\); check whether another program uses the device .* to resume .*, or choose a smaller .*\.$"
    )
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", tiny(epochs=1), limit_train_batches=1)
    if moment == "splits.opening":
        assert not (tmp_path / "run").exists()  # Nothing had begun.
    else:
        recorded = status(tmp_path / "run")
        assert (moment, recorded["status"]) == (f"step-{recorded['step']:08d}.polled", "failed")
        assert re.match(message, recorded["reason"])


def test_a_network_of_which_nothing_fits_is_refused_with_ways_on(
    tmp_path: Path, memory: Callable[..., list[int]]
) -> None:
    memory(0)
    with pytest.raises(ConfigError, match=r"not even one image per forward pass fits .*--model\.grad-checkpointing"):
        run(tmp_path / "run", TINY, micro_batch="auto")
    with pytest.raises(ConfigError, match=r"not even one image per forward pass fits"):
        run(tmp_path / "run", TINY)


def test_sync_batchnorm_without_gpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--sync-batchnorm needs GPUs, but this run is on cpu.*leave it out"):
        run(tmp_path / "run", TINY, sync_batchnorm=True)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_a_timeout_that_is_none_is_refused(minutes: float) -> None:
    with pytest.raises(ConfigError, match=r"--timeout-minutes .* is out of range; expected more than 0 .*; give 30"):
        RunOptions(timeout_minutes=minutes)


# fp16. torch's loss scaler works on a CPU in float32 too; a gradient is made to overflow as it would in fp16.


def scaled(tmp_path: Path, scale: float) -> tuple[TrainState, list[float]]:
    """Two steps with a loss scale, under which the gradient overflows above 2**14. Returns the state and the losses."""
    accelerator = start_accelerator(tmp_path)
    if scale:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    recipe = tiny(ema=Ema(), clip_grad_norm=0.5)
    plan = Plan.of(recipe, RunOptions(), accelerator, SHAPES.open("train"))
    state = TrainState.build(recipe, accelerator, 100, compile_model=False)
    if scaler := accelerator.scaler:
        # Accelerate takes the scale off before clipping only where it says fp16; autocast was set up before.
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        state.net.get_parameter("head.fc.weight").register_hook(
            lambda gradient: gradient * float("inf") if scaler.get_scale() > 2**14 else gradient
        )
    losses = [train_step(state, batch, plan.lr(batch.step), 20)[0].item() for batch in plan.pipeline.batches(0, 2)]
    return state, losses


def test_an_fp16_step_that_overflows_is_done_again_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, plain_losses = scaled(tmp_path, 0)
    averaged: list[int] = []
    update = type(plain.ema).update if plain.ema else None
    assert update is not None

    def counted(ema: Any, net: nn.Module, step: int) -> None:
        averaged.append(step)
        update(ema, net, step)

    monkeypatch.setattr(type(plain.ema), "update", counted)
    forget()
    ours, losses = scaled(tmp_path, 2.0**16)
    assert ours.accelerator.scaler is not None and ours.accelerator.scaler.get_scale() == 2**14  # Skipped twice.
    assert ours.step == plain.step == 2 and averaged == [1, 2]
    assert losses == pytest.approx(plain_losses, rel=1e-6)
    for name, tensor in plain.net.state_dict().items():
        torch.testing.assert_close(ours.net.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    assert ours.ema is not None and plain.ema is not None
    torch.testing.assert_close(
        dict(ours.ema.module.state_dict()), dict(plain.ema.module.state_dict()), rtol=1e-5, atol=1e-7
    )


def test_an_fp16_step_that_overflows_for_ever_is_not_finite(tmp_path: Path) -> None:
    accelerator = start_accelerator(tmp_path)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    plan = Plan.of(TINY, RunOptions(), accelerator, SHAPES.open("train"))
    state = TrainState.build(TINY, accelerator, 100, compile_model=False)
    with torch.no_grad():
        next(iter(state.net.parameters())).fill_(float("inf"))
    (batch,) = plan.pipeline.batches(0, 1)
    _, finite = train_step(state, batch, 0.1, 20)
    assert not finite.item() and state.step == 0
    assert accelerator.scaler.get_scale() == 2.0 ** (16 - 40)
