"""What only a CUDA device can show: no waiting for it, no race between streams, fp16, compiling, resuming: `pytest -m gpu`."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from augment_images import CHAINS, awkward, photo_like
from runs import SHAPES, Bell, assert_same_tensors, forget, newest, ring_at, run, status, tiny
from torch import Tensor

from cifar100_tk.augment import AutoAugment, Chain, Cutout, Flip, Mix, Normalize, RandomResizedCrop, finish
from cifar100_tk.data.image_store import ImageStore
from cifar100_tk.distributed.launch import Precision, precision, start_accelerator, use_kernels
from cifar100_tk.distributed.memory import find_micro_batch, oom_as_error
from cifar100_tk.distributed.signals import LAG, RankSync, StepStatus
from cifar100_tk.errors import ConfigError, StoppedError
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import SGD, AdamW, Ema, Optimizer
from cifar100_tk.recipe import Recipe
from cifar100_tk.runs import checkpoint
from cifar100_tk.runs.checkpoint_manager import CheckpointManager, Files, Snapshot
from cifar100_tk.train import train_step
from cifar100_tk.training.loader import Batch, BatchOrder, OneAhead, Pipeline
from cifar100_tk.training.plan import Plan, RunOptions
from cifar100_tk.training.state import MAX_OVERFLOWS, TrainState

pytestmark = pytest.mark.gpu
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROUNDING = 2.0**-22
"""One float32 rounding of the largest values that a normalized image holds, 2 to 4."""
SLEEP = 200_000_000
"""Clock cycles, about 0.1 s: more than the host takes to queue a batch, so that it gets further ahead at each."""
MIXES = {
    "none": None,
    "Mixup": Mix(mixup_alpha=0.2),
    "CutMix": Mix(mixup_alpha=0.0, cutmix_alpha=1.0),
    "both": Mix(mixup_alpha=0.2, cutmix_alpha=1.0),
}
SMALL = tiny(
    model=TimmModel(name="resnet10_cifar_w16", drop_rate=0.2),
    augment=(RandomResizedCrop(), Flip(), AutoAugment(), Bell()),
    ema=Ema(),
)
"""With BatchNorm, dropout and an average; two epochs of five steps."""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what Accelerate remembers, and put back torch's settings, which last as long as the process."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    # --deterministic sets it too, but cuBLAS reads it once, when it is first used, which may be in an earlier test.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    forget()
    yield
    forget()
    torch.use_deterministic_algorithms(deterministic)
    cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def no_waiting() -> Iterator[None]:
    """Make every wait of the host for the device an error inside the block."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        # torch says this once a process, and the tests take warnings for errors.
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_debug_mode_does_notice_a_wait() -> None:
    answer = torch.ones((), device=CUDA)
    with no_waiting(), pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        answer.item()


# The images.


@pytest.mark.parametrize("augment", CHAINS, ids=lambda chain: "-".join(type(one).__name__ for one in chain) or "none")
def test_cuda_gives_the_bytes_of_the_host_without_waiting(augment: tuple[Any, ...]) -> None:
    images = np.concatenate([photo_like(300), awkward()])
    index = np.arange(len(images))
    chain = Chain(augment, 5)
    on_device = torch.from_numpy(images).to(CUDA)
    chain.device(on_device, 2, index)  # Small constant tables are sent once.
    with no_waiting():
        augmented = chain.device(on_device, 2, index)
    np.testing.assert_array_equal(augmented.cpu().numpy(), chain.host(images, 2, index))


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_store_finish_and_mix_give_the_cpu_s_images_without_waiting(mix: Mix | None) -> None:
    split, index = SHAPES.open("train"), np.random.default_rng(0).permutation(100)[:64]
    normalize, cutout = Normalize(), Cutout(num_holes=2, p=0.7)

    def images(device: torch.device, step: int) -> tuple[Tensor, Tensor]:
        raw_images, labels = ImageStore(split, device).gather(index)
        finished = finish(raw_images, normalize, cutout, 3, step, index)
        return (finished, labels) if mix is None else mix.build(100, 0.1)(finished, labels, 3, step)

    images(CUDA, 0)  # The store is sent once.
    for step in range(5):
        with no_waiting():
            ours = images(CUDA, step)
        assert all(tensor.device.type == "cuda" for tensor in ours)
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
        for our, their in zip(ours, images(CPU, step), strict=True):
            torch.testing.assert_close(our.cpu(), their, rtol=0, atol=ROUNDING)


def pipeline(
    device: torch.device,
    executor: Literal["device", "host"] = "device",
    workers: int = 0,
    mode: Literal["batch", "elem"] = "batch",
) -> Pipeline:
    """Twenty steps of five epochs."""
    split = SHAPES.open("train")
    order = BatchOrder(3, split.index, 24, 4)
    augment = (RandomResizedCrop(), Flip(), AutoAugment(p=1.0))
    mix = Mix(mixup_alpha=0.2, cutmix_alpha=1.0, mode=mode)
    return Pipeline(split, order, augment, Normalize(), Cutout(), mix, 0.1, device, executor, workers)


def assert_same_batches(ours: list[tuple[Tensor, Tensor]], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) == 20
    for (images, targets), batch in zip(ours, theirs, strict=True):
        torch.testing.assert_close(images.cpu(), batch.images, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(targets.cpu(), batch.targets, rtol=0, atol=ROUNDING)


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # CUDA's threads; no worker uses it.
@pytest.mark.parametrize(("executor", "workers"), [("device", 0), ("host", 0), ("host", 2)])
def test_a_slow_model_gets_the_batches_of_the_cpu(executor: Literal["device", "host"], workers: int) -> None:
    # The host is many batches ahead of the model, so memory handed on too early is overwritten before the model reads it.
    list(pipeline(CUDA, executor).batches(0, 20))
    kept = []
    for batch in pipeline(CUDA, executor, workers).batches(0, 20):
        torch.cuda._sleep(SLEEP)
        kept.append((batch.images.clone(), batch.targets.clone()))
    assert_same_batches(kept, list(pipeline(CPU).batches(0, 20)))


def test_a_quick_model_waits_for_a_slow_pipeline() -> None:
    # Each batch is all wrong until the side stream has slept; a model that does not wait reads that.
    theirs = list(pipeline(CPU).batches(0, 20))
    # Ahead of the loop, since making pinned memory waits for the device.
    pinned = [(batch.images.pin_memory(), batch.targets.pin_memory()) for batch in theirs]

    def slow() -> Iterator[Batch]:
        for batch, (right_images, right_targets) in zip(theirs, pinned, strict=True):
            images = torch.full_like(batch.images, torch.nan, device=CUDA)
            targets = torch.full_like(batch.targets, torch.nan, device=CUDA)
            torch.cuda._sleep(SLEEP)
            images.copy_(right_images, non_blocking=True)
            targets.copy_(right_targets, non_blocking=True)
            yield dataclasses.replace(batch, images=images, targets=targets)

    kept = [(batch.images.clone(), batch.targets.clone()) for batch in OneAhead(slow(), CUDA)]
    assert_same_batches(kept, theirs)


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_making_a_batch_never_waits_for_the_model(mode: Literal["batch", "elem"]) -> None:
    list(pipeline(CUDA, mode=mode).batches(0, 4))  # The store and the small tables are sent once.
    with no_waiting():
        made = [(batch.images, batch.targets) for batch in pipeline(CUDA, mode=mode).batches(0, 20)]
    assert_same_batches(made, list(pipeline(CPU, mode=mode).batches(0, 20)))


def test_a_batch_of_2048_is_made_within_a_gigabyte_beyond_the_store() -> None:
    index = np.arange(2048)
    raw_images, labels = torch.from_numpy(photo_like(2048)).to(CUDA), torch.zeros(2048, dtype=torch.int64, device=CUDA)
    mixer = Mix(mixup_alpha=0.2, cutmix_alpha=1.0).build(100, 0.1)
    chain, held = Chain((RandomResizedCrop(), Flip(), AutoAugment(p=1.0)), 0), []
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for epoch in range(8):
        images = finish(chain.device(raw_images, epoch, index), Normalize(), Cutout(p=1.0), 0, epoch, index)
        mixer(images, labels, 0, epoch)
        del images
        held.append(torch.cuda.memory_allocated())
    assert torch.cuda.max_memory_allocated() - before < 1e9
    assert held[-1] == held[0]  # Small constant tables are all that stays.


# The step.


class Prepared:
    """A recipe's training state on the device, as `train` makes it."""

    def __init__(self, recipe: Recipe, path: Path, *, compile_model: bool = False) -> None:
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        self.accelerator = start_accelerator(path, precision=cast("Precision", asked))
        use_kernels(deterministic=False)
        assert self.accelerator.device.type == "cuda"
        self.plan = Plan.of(recipe, RunOptions(), self.accelerator, SHAPES.open("train"))
        self.state = TrainState.build(recipe, self.accelerator, 100, compile_model=compile_model)

    def batches(self, stop: int) -> Iterator[Batch]:
        return self.plan.pipeline.batches(0, stop)

    def step(self, batch: Batch, lr: float = 0.1) -> tuple[Tensor, Tensor]:
        return train_step(self.state, batch, lr, self.plan.micro_batch)


def weights(state: TrainState, which: Literal["raw", "ema"] = "raw") -> dict[str, Tensor]:
    """A copy of the parameters. Running statistics are left out: they count a repeated forward pass."""
    net = state.net if which == "raw" or state.ema is None else state.ema.module
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of any two weights."""
    assert ours.keys() == theirs.keys() and ours
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@pytest.mark.parametrize("precision", ["bf16", "no"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), AdamW(lr=1e-3)], ids=["SGD", "AdamW"])
def test_a_step_with_its_batch_and_its_flags_never_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, clip: float, optimizer: Optimizer
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    made = Prepared(dataclasses.replace(SMALL, clip_grad_norm=clip, optimizer=optimizer), tmp_path)
    sync = RankSync(made.accelerator)
    losses, told, first = [], [], weights(made.state)

    def step(batch: Batch) -> None:
        loss, finite = made.step(batch, 1e-3)
        told.extend(sync.all_reduce(batch.step, False, loss, finite, wait=False))
        losses.append(loss)

    batches = made.batches(10)
    for batch in (next(batches), next(batches), next(batches)):
        step(batch)  # The store is sent, the optimizer's state is made, cuDNN chooses its algorithms.
    with no_waiting():
        for batch in batches:
            step(batch)
    assert made.state.step == 10 and len(losses) == 10
    assert all(2 < loss.item() < 8 for loss in losses)  # log(100) is 4.6.
    assert told == [StepStatus(step, loss.item(), False, ()) for step, loss in enumerate(losses[: -LAG["cuda"]])]
    assert 0 < distance(weights(made.state), first) < 1


def test_smaller_pieces_do_not_wait_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    made = Prepared(SMALL, tmp_path)
    batches = made.batches(4)
    for batch in (next(batches), next(batches)):
        train_step(made.state, batch, 0.1, 7)
    with no_waiting():
        for batch in batches:
            train_step(made.state, batch, 0.1, 7)
    assert made.state.step == 4


@pytest.mark.filterwarnings("default")  # cuDNN tells of the kernels that it has no memory to try.
def test_what_fits_is_found_and_a_step_that_does_not_fit_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    made = Prepared(SMALL, tmp_path)
    (batch,) = made.batches(1)
    made.step(batch)

    def of(count: int) -> Batch:
        places = torch.arange(count, device=CUDA) % len(batch.images)
        images = batch.images[places].contiguous(memory_format=torch.channels_last)
        return Batch(1, np.resize(batch.index, count), images, batch.targets[places])

    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(4e9 / torch.cuda.get_device_properties(CUDA).total_memory)
    try:
        looked = made.state.workload(100)
        micro_batch = find_micro_batch(looked, 2**20)  # Whose images alone are 12.9 GB.
        assert micro_batch in {2**exponent for exponent in range(8, 20)}
        train_step(made.state, of(micro_batch), 0.1, micro_batch)
        assert made.state.step == 2
        message = (
            rf"ran out of memory on cuda:0 .* with {4 * micro_batch:,} images per forward pass; --micro-batch \d+ fits"
        )
        with pytest.raises(ConfigError, match=message), oom_as_error(looked, 4 * micro_batch):
            train_step(made.state, of(4 * micro_batch), 0.1, 4 * micro_batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_the_plan_says_what_is_computed_in_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert precision(Prepared(SMALL, tmp_path).accelerator) == "float32 (TF32 convolutions)"


# fp16: the loss scaler reads on the host whether the gradient overflowed, so these tests let it wait.


def fp16(path: Path, scale: float) -> Prepared:
    made = Prepared(SMALL, path)
    scaler = made.accelerator.scaler
    assert scaler is not None
    scaler.load_state_dict(scaler.state_dict() | {"scale": scale})
    return made


def test_an_fp16_step_that_overflows_is_done_again_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    reached, moved, scales = {}, {}, {}
    for scale in (2.0**8, 2.0**40):  # With the second the first step overflows some 20 times.
        made = fp16(tmp_path, scale)
        first = weights(made.state)
        for batch in made.batches(2):
            _, finite = made.step(batch)
            assert finite.item()
        assert made.state.step == 2
        reached[scale] = {"raw": weights(made.state), "ema": weights(made.state, "ema")}
        moved[scale] = distance(reached[scale]["raw"], first)
        scales[scale] = made.state.facts()["scaler"]["scale"]
        forget()
    assert scales[2.0**8] == 2.0**8 and 1 < scales[2.0**40] < 2.0**38
    # A scale that is a power of two changes no bit but where fp16 ends, so the same weights are reached up to rounding.
    for which in ("raw", "ema"):
        assert distance(reached[2.0**40][which], reached[2.0**8][which]) < 0.1 * moved[2.0**8]


def test_an_fp16_step_that_always_overflows_moves_nothing_and_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    made = fp16(tmp_path, 2.0**16)
    first, second = made.batches(2)
    made.step(first)
    before = weights(made.state), weights(made.state, "ema")
    momentum = {name: buffer.clone() for name, buffer in made.state.tensors()["optimizer"].items()}
    # Finite in float32, but over fp16's 65,504 however often the scale is halved.
    huge = dataclasses.replace(second, targets=second.targets * 1e25)
    _, finite = made.step(huge)
    assert not finite.item() and made.state.step == 1
    assert made.state.facts()["scaler"]["scale"] == 2.0 ** (16 - MAX_OVERFLOWS)
    assert distance(weights(made.state), before[0]) == 0
    assert distance(weights(made.state, "ema"), before[1]) == 0
    after = made.state.tensors()["optimizer"]
    assert after.keys() == momentum.keys() and momentum
    assert all(torch.equal(after[name], buffer) for name, buffer in momentum.items())


# Saving.


def assert_holds(files: Files, wanted: Files) -> None:
    assert files.keys() == wanted.keys() and wanted
    for file, tensors in wanted.items():
        assert files[file].keys() == tensors.keys() and tensors
        for name, tensor in tensors.items():
            ours = files[file][name]
            assert ours.device == CPU and torch.equal(ours, tensor.cpu()), f"{file}: {name}"


@pytest.mark.parametrize("room", [True, False], ids=["room", "no room"])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), AdamW(lr=1e-3)], ids=["SGD", "AdamW"])
def test_a_snapshot_is_of_its_moment_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: Optimizer, room: bool
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    if not room:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 1))
    made, snapshot = Prepared(dataclasses.replace(SMALL, optimizer=optimizer), tmp_path), Snapshot()
    batches = made.batches(6)
    for batch in (next(batches), next(batches), next(batches)):
        made.step(batch)
    assert_holds(snapshot.take(made.state.tensors())(), made.state.tensors())  # Memory for the copies is made once.
    assert (snapshot.on_device is not None) == room
    memory = torch.cuda.memory_allocated()
    for batch in batches:
        made.step(batch)
        wanted = {
            file: {name: tensor.clone() for name, tensor in tensors.items()}
            for file, tensors in made.state.tensors().items()
        }
        torch.cuda._sleep(SLEEP)  # The device is late, and training goes on before it has copied anything.
        with no_waiting():
            on_host = snapshot.take(made.state.tensors())
            for tensors in made.state.tensors().values():
                for tensor in tensors.values():
                    tensor.zero_()
        assert_holds(on_host(), wanted)
        for file, tensors in made.state.tensors().items():
            for name, tensor in tensors.items():
                tensor.copy_(wanted[file][name])
        del wanted
    assert torch.cuda.memory_allocated() <= memory + 2**20


def test_a_save_in_the_background_holds_what_was_true_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    made = Prepared(SMALL, tmp_path)
    manager = CheckpointManager(tmp_path / "checkpoints", keep=9, async_save=True, every_epochs=1)
    wanted: dict[int, Files] = {}
    for batch in made.batches(6):
        made.step(batch)
        tensors = {
            file: {name: tensor.clone() for name, tensor in values.items()}
            for file, values in made.state.tensors().items()
        }
        manager.save_if_due(made.state.step, made.state.step, lambda: (made.state.tensors(), {}))
        if manager.saved_step == made.state.step:
            wanted[made.state.step] = tensors
    made.state.step += 1
    manager.save_last(made.state.step, lambda: (made.state.tensors(), {}))
    wanted[made.state.step] = made.state.tensors()
    found = [checkpoint.read(path) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert [one.step for one in found] == list(wanted) and found[0].step == 1 and found[-1].step == 7
    for one in found:
        assert_holds(one.tensors, wanted[one.step])


# Compiling and resuming.


@pytest.mark.filterwarnings("default")  # What Inductor warns of depends on the card and the release.
def test_a_compiled_step_is_the_plain_one_with_bare_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    torch._dynamo.reset()
    # Dropout draws in another order when it is compiled.
    recipe = dataclasses.replace(SMALL, model=TimmModel(name="resnet10_cifar_w16"))
    losses, names = {}, {}
    for compiled in (False, True):
        made = Prepared(recipe, tmp_path, compile_model=compiled)
        losses[compiled] = [made.step(batch)[0].item() for batch in made.batches(4)]
        names[compiled] = {file: set(tensors) for file, tensors in made.state.tensors().items()}
        forget()
    # bf16 keeps 8 bits of each activation, and a fused kernel rounds less often.
    assert losses[True] == pytest.approx(losses[False], rel=0.02)
    assert names[True] == names[False] and "fc.weight" in names[True]["model"]


@pytest.mark.filterwarnings("default")  # As above.
def test_a_compiled_step_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    made = Prepared(SMALL, tmp_path, compile_model=True)
    batches = made.batches(6)
    for batch in (next(batches), next(batches), next(batches)):
        made.step(batch)
    with no_waiting():
        for batch in batches:
            made.step(batch)
    assert made.state.step == 6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_resume_gives_the_same_weights_as_no_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    options: dict[str, Any] = {"deterministic": True, "eval_every": 1, "compile": "off"}
    ring_at.clear()
    run(tmp_path / "whole", SMALL, **options)
    forget()
    ring_at[:] = [7]
    with pytest.raises(StoppedError, match="stopped by SIGTERM after step"):
        run(tmp_path / "parts", SMALL, **options)
    # A batch is made one step ahead, and the status of a step is read a few steps later.
    assert 6 <= status(tmp_path / "parts")["step"] <= 10
    assert not (tmp_path / "parts" / "model").exists()
    forget()
    run(tmp_path / "parts", SMALL, **options)
    assert_same_tensors(newest(tmp_path / "parts"), newest(tmp_path / "whole"))
    assert newest(tmp_path / "parts").step == 10
