"""Checkpoints come when they are due, wait for none before, and hold what was true when they were asked for."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FACTS, names, tensors
from torch import Tensor

from cifar100_tk.errors import DiskError
from cifar100_tk.runs import checkpoint
from cifar100_tk.runs.checkpoint_manager import Buffer, CheckpointManager, Layout


class Saves:
    """A manager whose clock is set by hand, and the tensors that it saves."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.now, self.values, self.folder = 1000.0, tensors(), folder
        options = {"async_save": False, "clock": lambda: self.now, **options}
        self.manager = CheckpointManager(folder, keep=9, **options)

    def content(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, float | None]]:
        return self.values, FACTS

    def end_epoch(self, epoch: int, seconds: float = 0.0) -> list[str]:
        """Let an epoch of ten steps end, so long after the one before. Returns the names of all checkpoints."""
        self.now += seconds
        self.manager.save_if_due(epoch, 10 * epoch, self.content)
        return names(self.folder)


def test_by_default_a_checkpoint_is_saved_once_the_previous_one_is_a_minute_old(tmp_path: Path) -> None:
    saves = Saves(tmp_path)
    assert saves.end_epoch(1, seconds=59.9) == []
    assert saves.end_epoch(2, seconds=0.1) == ["step-00000020"]
    assert saves.end_epoch(3, seconds=30.0) == ["step-00000020"]
    assert saves.end_epoch(4, seconds=30.0) == ["step-00000020", "step-00000040"]
    assert saves.end_epoch(5, seconds=3600.0)[2:] == ["step-00000050"]
    assert saves.end_epoch(6)[3:] == []
    saves.manager.save_last(60, saves.content)  # However soon.
    assert names(tmp_path)[3:] == ["step-00000060"]


def test_epochs_that_are_asked_for_are_saved_whatever_the_time(tmp_path: Path) -> None:
    saves = Saves(tmp_path, every_epochs=2)
    assert [len(saves.end_epoch(epoch, seconds)) for epoch, seconds in ((1, 3600.0), (2, 0.0), (3, 0.0), (4, 0.0))] == [
        *(0, 1, 1, 2)
    ]
    assert names(tmp_path) == ["step-00000020", "step-00000040"]


@pytest.mark.parametrize("every_epochs", [1, 4, None])
def test_a_save_that_is_due_while_the_previous_one_is_written_is_left_to_the_next_epoch(
    tmp_path: Path, every_epochs: int | None
) -> None:
    saves, disk = Saves(tmp_path, async_save=True, every_epochs=every_epochs), threading.Event()
    saves.manager.writer.submit(disk.wait)
    saves.end_epoch(4, seconds=60.0)
    busy = saves.manager.pending
    saves.end_epoch(8, seconds=60.0)  # Nobody waits for the disk, or this would be the end of the test.
    assert saves.manager.pending is busy is not None
    disk.set()
    busy.result()
    saves.end_epoch(9)
    saves.manager.wait()
    assert names(tmp_path) == ["step-00000040", "step-00000090"]


def test_the_last_save_waits_for_the_previous_one_and_is_made_once(tmp_path: Path) -> None:
    saves, disk = Saves(tmp_path, async_save=True, every_epochs=1), threading.Event()
    saves.manager.writer.submit(disk.wait)
    saves.end_epoch(1)
    threading.Timer(0.2, disk.set).start()
    saves.manager.save_last(11, saves.content)
    assert names(tmp_path) == ["step-00000010", "step-00000011"]
    before = (tmp_path / "step-00000011").stat()
    saves.manager.save_last(11, saves.content)
    after = (tmp_path / "step-00000011").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_run_that_stops_where_it_resumed_has_nothing_to_save(tmp_path: Path) -> None:
    saves = Saves(tmp_path, saved_step=10)
    saves.manager.save_last(10, saves.content)
    assert names(tmp_path) == []


def test_what_is_saved_in_the_background_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    saves, trained = Saves(tmp_path, async_save=True, every_epochs=1), threading.Event()
    saves.manager.writer.submit(trained.wait)
    saves.end_epoch(1)
    saves.values["model"]["conv.weight"].zero_()
    trained.set()
    saves.manager.wait()
    found = checkpoint.read(tmp_path / "step-00000010")
    assert torch.equal(found.tensors["model"]["conv.weight"], tensors()["model"]["conv.weight"])


def test_a_save_in_the_background_that_failed_is_told_at_the_next_epoch(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    manager = CheckpointManager(tmp_path / "file", keep=2, async_save=True, every_epochs=2)
    manager.save_if_due(2, 20, lambda: (tensors(), FACTS))
    assert manager.pending is not None
    concurrent.futures.wait([manager.pending])
    with pytest.raises(DiskError, match="Not a directory"):
        manager.save_if_due(3, 30, lambda: pytest.fail("not due"))


def awkward(fill: float) -> dict[tuple[str, str], Tensor]:
    """Tensors of several types, shapes and orders of memory, some of the same name in two files."""
    kernel = torch.arange(54.0).reshape(2, 3, 3, 3) * fill
    return {
        ("model", "channels_last"): kernel.to(memory_format=torch.channels_last),
        ("model", "transposed"): torch.arange(6.0).reshape(2, 3).T * fill,
        ("model", "count"): torch.tensor(7 * int(fill)),
        ("model", "half"): (torch.ones(3) * fill).bfloat16(),
        ("model", "empty"): torch.zeros(0, 4),
        ("ema", "channels_last"): kernel.to(memory_format=torch.channels_last) + 1,
        ("ema", "flag"): torch.tensor([True, False]),
    }


def test_a_buffer_holds_each_tensor_with_its_strides_and_is_filled_again() -> None:
    layout = Layout(awkward(1.0))
    buffer = Buffer(layout, torch.full((layout.size,), 255, dtype=torch.uint8))
    for fill in (1.0, 2.0):
        buffer.fill(awkward(fill))
        assert buffer.views.keys() == awkward(fill).keys()
        for key, tensor in awkward(fill).items():
            assert torch.equal(buffer.views[key], tensor) and buffer.views[key].dtype == tensor.dtype, key
            assert buffer.views[key].stride() == tensor.stride(), key
            assert buffer.views[key].untyped_storage().data_ptr() == buffer.flat.data_ptr()
    # Each with room of its own.
    places = sorted((view.data_ptr(), view.data_ptr() + view.nbytes) for view in buffer.views.values() if view.nbytes)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))


def test_a_layout_fits_only_tensors_of_its_kinds() -> None:
    layout = Layout(awkward(1.0))
    assert layout.fits(awkward(3.0))
    for key, other in (
        (("model", "channels_last"), torch.zeros(2, 3, 3, 3)),
        (("model", "count"), torch.tensor(7, dtype=torch.int32)),
        (("model", "half"), torch.zeros(4).bfloat16()),
        (("model", "new"), torch.zeros(1)),
    ):
        assert not layout.fits(awkward(1.0) | {key: other})
