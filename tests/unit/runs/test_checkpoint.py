"""Checkpoints and files are whole or not there, whatever happens to the disk, and what was changed on it is noticed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from checkpoints import FACTS, names, tensors
from damage import empty, flip_a_bit, truncate
from runs import contents

from cifar100_tk.errors import DataError, DiskError, LockedError
from cifar100_tk.runs import checkpoint
from cifar100_tk.storage import atomic, failpoint


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, step, tensors(step), FACTS, keep=keep)


def test_what_was_saved_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path == tmp_path / "step-00000012"
    assert names(path) == ["manifest.json", "model.safetensors", "optimizer.safetensors"]
    for found in (checkpoint.read(path), checkpoint.newest(tmp_path)[0]):
        assert found is not None
        assert (found.path, found.step, found.facts) == (path, 12, FACTS)
        assert found.tensors.keys() == {"model", "optimizer"}
        for file, expected in tensors(12).items():
            assert found.tensors[file].keys() == expected.keys()
            for name, tensor in expected.items():
                assert (
                    torch.equal(found.tensors[file][name], tensor) and found.tensors[file][name].dtype == tensor.dtype
                )


def test_the_manifest_lists_each_file_with_its_sha256(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 3
    weights = manifest["files"]["model.safetensors"]
    assert weights == {
        "bytes": (path / "model.safetensors").stat().st_size,
        "sha256": atomic.sha256(path / "model.safetensors"),
    }


def test_the_same_state_is_the_same_bytes(tmp_path: Path) -> None:
    a, b = (save(tmp_path / name, 5) for name in "ab")
    assert contents(a) == contents(b)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 100):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000010", "step-00000100"]


def swap_with_the_other(file: Path) -> None:
    other = file.with_name("model.safetensors" if file.name.startswith("optimizer") else "optimizer.safetensors")
    kept = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def take_from_an_older_one(file: Path) -> None:
    shutil.copy(file.parent.parent / "step-00000001" / file.name, file)


DAMAGES: list[Callable[[Path], None]] = [
    flip_a_bit,
    truncate,
    empty,
    Path.unlink,
    swap_with_the_other,
    take_from_an_older_one,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_damaged_file_is_named_and_the_older_checkpoint_used(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    damage(path / name)
    # The swapped pair is wrong in both files, and the first one is named.
    named = "model.safetensors" if damage is swap_with_the_other else name
    sentence = rf"step-00000002/{named} is (missing|not as it was written .*); the checkpoint is not valid"
    with pytest.raises(DataError, match=sentence):
        checkpoint.read(path)
    found, complaints = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1
    assert len(complaints) == 1 and named in complaints[0]
    assert names(tmp_path) == [".bad-step-00000002", "step-00000001"]
    # The run gets to its step again, and there the name must be free.
    assert save(tmp_path, 2) == path and checkpoint.read(path).step == 2
    damage(path / name)
    assert len(checkpoint.newest(tmp_path)[1]) == 1 and names(tmp_path) == [".bad-step-00000002", "step-00000001"]


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (None, r"manifest.json is missing or not a manifest \(FileNotFoundError\)"),
        ("", r"manifest.json is missing or not a manifest \(JSONDecodeError\)"),
        ("[]", r"manifest.json is missing or not a manifest \(TypeError\)"),
        ('{"step": 2, "facts": {}}', r"manifest.json is missing or not a manifest \(KeyError\)"),
        ('{"step": 2, "files": [], "facts": {}}', r"manifest.json is missing or not a manifest \(AttributeError\)"),
        ('{"step": 2, "files": {}, "facts": {}}', r"manifest.json is missing or not a manifest \(KeyError\)"),
        ('{"step": 2, "files": {}, "facts": {}, "sha256": ""}', "manifest.json is not as it was written"),
    ],
)
def test_a_manifest_that_is_none_makes_the_checkpoint_invalid(
    tmp_path: Path, manifest: str | None, sentence: str
) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / "manifest.json"
    file.unlink() if manifest is None else file.write_text(manifest)
    with pytest.raises(DataError, match=f"{sentence}.*; the checkpoint is not valid"):
        checkpoint.read(file.parent)
    found, complaints = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1 and len(complaints) == 1


ENTRY = {"bytes": 1, "sha256": ""}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": "2"}, "TypeError"),
        ({"step": -1}, "TypeError"),
        ({"facts": []}, "TypeError"),
        ({"files": {"../step-00000001/model.safetensors": ENTRY}}, "ValueError"),
        ({"files": {"a\0b.safetensors": ENTRY}}, "ValueError"),
        ({"files": {"model.bin": ENTRY}}, "ValueError"),
        ({"files": {"model.safetensors": ENTRY | {"bytes": "1"}}}, "TypeError"),
        ({"files": {"model.safetensors": ENTRY | {"sha256": 1}}}, "TypeError"),
        ({"facts": {"note": "x" * 1_000_000}}, "JSONDecodeError"),
    ],
)
def test_a_sealed_manifest_of_other_values_makes_the_checkpoint_invalid(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    file = save(tmp_path, 2) / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    file.write_bytes(checkpoint._sealed(manifest | changes))
    with pytest.raises(DataError, match=rf"manifest.json is missing or not a manifest \({reason}\)"):
        checkpoint.read(file.parent)


def test_a_checkpoint_by_the_name_of_another_step_is_not_valid(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"manifest.json belongs to step 2, not to this folder; the checkpoint is not valid"
    ):
        checkpoint.read(save(tmp_path, 2).rename(tmp_path / "step-00000009"))


def test_a_checkpoint_that_is_retired_while_they_are_looked_at_is_not_complained_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = checkpoint.verify
    for step in (1, 2):
        save(tmp_path, step)

    def verify_late(path: Path) -> object:
        if path.name == "step-00000001":
            save(tmp_path, 3)
        return verify(path)

    monkeypatch.setattr(checkpoint, "verify", verify_late)
    assert checkpoint.survey(tmp_path) == {tmp_path / f"step-{step:08d}": None for step in (2, 3)}


def test_without_any_valid_checkpoint_there_is_none_but_the_reasons(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    for step in (1, 2):
        empty(save(tmp_path, step) / "model.safetensors")
    found, complaints = checkpoint.newest(tmp_path)
    assert found is None
    assert ["step-00000002" in complaints[0], "step-00000001" in complaints[1]] == [True, True]


@contextmanager
def small_files_only() -> Iterator[None]:
    """Let the kernel refuse every byte of a file beyond the 400th, as a quota or a full disk does.

    Only around the write itself: what the tests print may go to a file as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_is_cut_short_leaves_nothing_and_the_older_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    before = contents(tmp_path)
    message = r"cannot write .*step-00000003 \(File too large\): [\d,]+ bytes are needed"
    with pytest.raises(DiskError, match=message), small_files_only():
        save(tmp_path, 3)
    assert contents(tmp_path) == before


def test_a_disk_that_is_full_when_it_comes_to_the_point_is_told_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    before = contents(tmp_path)
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        DiskError, match=r"No space left on device\): [\d,]+ bytes are needed and [\d,]+ are free; make"
    ):
        save(tmp_path, 2)
    assert contents(tmp_path) == before and names(tmp_path) == ["step-00000001"]


def test_a_file_that_cannot_be_replaced_stays_as_it_is(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / "status.json", b"old")
    # The device that is always full, in the place where the new content is prepared.
    (tmp_path / f"{atomic.TEMPORARY}status.json").symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"No space left on device.*: 3 bytes are needed"):
        atomic.write_file(tmp_path / "status.json", b"new")
    assert contents(tmp_path) == {"status.json": b"old"} and names(tmp_path) == ["status.json"]
    atomic.write_file(tmp_path / "status.json", b"new")
    assert contents(tmp_path) == {"status.json": b"new"}


def test_a_line_that_cannot_be_added_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(point: str) -> None:
        if point == "metrics.jsonl.written":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    atomic.append_line(tmp_path / "metrics.jsonl", "old")
    monkeypatch.setattr(failpoint, "reach", full)
    with pytest.raises(DiskError, match=r"No space left on device.*: 4 bytes are needed"):
        atomic.append_line(tmp_path / "metrics.jsonl", "new")
    assert contents(tmp_path) == {"metrics.jsonl": b"old\n"}


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_its_name_is_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: list[str] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        moments.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).relative_to(tmp_path)}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(failpoint, "reach", moments.append)
    atomic.write_file(tmp_path / "a", b"1")
    assert moments == ["a.opened", "a.written", "fsync .tmp-a", "a.synced", "a.replaced", "fsync ."]
    moments.clear()
    atomic.append_line(tmp_path / "a", "2")
    assert moments == ["a.opened", "a.written", "fsync a", "a.synced"]
    moments.clear()
    atomic.write_folder(tmp_path / "b", {"c": b"3"})
    file = ["c.opened", "c.written", "fsync .tmp-b/c", "c.synced"]
    assert moments == [*file, "fsync .tmp-b", "b.complete", "b.renamed", "fsync .", "b.committed"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "1,234 bytes are needed and .* are free; make room or choose another folder"),
        (errno.EDQUOT, "1,234 bytes are needed and .* are free; make room or choose another folder"),
        (errno.EACCES, "it is not writable; choose another folder that you own"),
        (errno.EROFS, "it is not writable; choose another folder that you own"),
        (errno.EIO, r"\(Input/output error\): choose another folder"),
    ],
)
def test_each_kind_of_refusal_has_its_remedy(tmp_path: Path, number: int, remedy: str) -> None:
    error = OSError(number, os.strerror(number))
    assert (DiskError.exit_code, DataError.exit_code) == (5, 3)
    with pytest.raises(DiskError, match=f"cannot write {tmp_path}/a/b .*{remedy}"):
        raise atomic.disk_error(error, tmp_path / "a" / "b", 1234)


def test_what_the_disk_did_not_keep_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(point: str) -> None:
        if point == "a.written":
            os.truncate(next(tmp_path.rglob("a")), 1)

    monkeypatch.setattr(failpoint, "reach", lose)
    with pytest.raises(DiskError, match="the data read back differs from the data written"):
        atomic.write_folder(tmp_path / "new", {"a": b"12"})
    assert not list(tmp_path.iterdir())


def test_a_folder_beneath_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for make in (atomic.make_folder, lambda folder: atomic.write_folder(folder, {"a": b""})):
        with pytest.raises(DiskError, match=r"cannot write .*/file/runs \(Not a directory\): choose another folder"):
            make(tmp_path / "file" / "runs")


def test_of_two_writers_of_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    with atomic.new_folder(tmp_path / "copy") as first:
        (first / "a").write_bytes(b"of the first")
        with (
            pytest.raises(LockedError, match=r"another process is writing .*/copy; wait for it, or choose another"),
            atomic.new_folder(tmp_path / "copy"),
        ):
            raise AssertionError("both write")
        assert contents(tmp_path) == {f"{atomic.TEMPORARY}copy/a": b"of the first"}
    assert contents(tmp_path) == {"copy/a": b"of the first"}


def test_a_writer_whose_folder_another_has_made_anew_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / f"{atomic.TEMPORARY}copy"

    def made_anew(descriptor: int, operation: int) -> None:
        temporary.rename(tmp_path / "copy")
        temporary.mkdir()

    monkeypatch.setattr("fcntl.flock", made_anew)
    with pytest.raises(LockedError, match="another process is writing"), atomic.new_folder(tmp_path / "copy"):
        raise AssertionError("both write")


def test_a_new_folder_needs_no_locks_and_begins_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, elsewhere = tmp_path / f"{atomic.TEMPORARY}copy", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b").write_bytes(b"somebody's")
    (left / "within").mkdir(parents=True)
    (left / "link").symlink_to(elsewhere)

    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", unknown)
    atomic.write_folder(tmp_path / "copy", {"a": b"new"})
    assert contents(tmp_path) == {"copy/a": b"new", "elsewhere/b": b"somebody's"}
    (tmp_path / f"{atomic.TEMPORARY}again").symlink_to(elsewhere)
    with pytest.raises(DiskError, match=r"cannot write .*/again \("):
        atomic.write_folder(tmp_path / "again", {"a": b"new"})
    assert contents(elsewhere) == {"b": b"somebody's"}


def test_a_folder_that_goes_loses_its_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    moments: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(failpoint, "reach", lambda point: moments.append((point, names(tmp_path))))
    atomic.remove_folder(tmp_path / "a")
    assert moments == [("a.retiring", ["a"]), ("a.retired", [".tmp-del-a"]), ("a.removed", [])]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    shutil.copytree(path, tmp_path / f"{atomic.TEMPORARY}step-00000002")
    shutil.copytree(path, tmp_path / f"{atomic.TEMPORARY}del-step-00000000")
    (tmp_path / f"{atomic.TEMPORARY}run_status.json").touch()
    found, complaints = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1 and complaints == []
    atomic.remove_unfinished(tmp_path)
    assert names(tmp_path) == ["step-00000001"]
