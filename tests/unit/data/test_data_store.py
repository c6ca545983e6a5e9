"""The cache of decoded images: written once, whole or not at all, and quick to open again."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import Copy, meta
from processes import PROGRAMS

from cifar100_tk.data import Cifar100, Fingerprint, shapes100
from cifar100_tk.data.fingerprint import image_digests
from cifar100_tk.errors import DiskError

pytestmark = pytest.mark.usefixtures("cache")
SMALL = Cifar100(source="shapes100", shapes100_rows=(1000, 100))


def by_hand(copy: Copy) -> str:
    """The identity of facts: sha256 of each image's HWC bytes and labels; sorted; sha256 of all of them."""
    digests = []
    for image, fine, coarse in zip(copy.images, copy.fine.tolist(), copy.coarse.tolist(), strict=True):
        digests.append(hashlib.sha256(image.tobytes() + bytes([fine, coarse])).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def test_identity_is_the_published_algorithm_whatever_the_row_order(tmp_path: Path, train_copy: Copy) -> None:
    train_copy.write_parquet(tmp_path / "train.parquet")
    identity = Cifar100(source=str(tmp_path)).open("train").identity
    assert identity.sha256 == by_hand(train_copy)
    assert identity.count == 300 and identity.sentence == "not the published CIFAR-100 images"

    order = np.random.default_rng(3).permutation(300)
    digests = image_digests(train_copy.chw()[order], train_copy.fine[order], train_copy.coarse[order])
    shuffled = Fingerprint.of(digests, builtin=False)
    assert shuffled.sha256 == identity.sha256 and shuffled.rows_sha256 != identity.rows_sha256
    assert Fingerprint.of([digests[row] for row in np.argsort(order)], builtin=False) == identity


def test_identity_changes_with_one_bit_of_an_image_or_a_label(train_copy: Copy) -> None:
    def sha256(copy: Copy) -> str:
        return Fingerprint.of(image_digests(copy.chw(), copy.fine, copy.coarse), builtin=False).sha256

    image, label = Copy(300, seed=1), Copy(300, seed=1)
    image.images[17, 3, 4, 1] ^= 1
    label.fine[17] ^= 1
    assert len({sha256(copy) for copy in (train_copy, image, label)}) == 3


def test_built_in_images_say_so() -> None:
    assert SMALL.open("test").identity.sentence == "shapes100, built in"


def opened(how: str, source: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Open a source in a process of its own."""
    command = [sys.executable, str(PROGRAMS / "open_store.py"), how, str(source)]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=os.environ | paths | environment, capture_output=True, text=True)


def test_an_open_cache_needs_neither_datasets_nor_pyarrow_nor_torch(tmp_path: Path, train_copy: Copy) -> None:
    train_copy.write_parquet(tmp_path / "copy" / "train.parquet")
    os.utime(tmp_path / "copy" / "train.parquet", (1, 1))
    first = Cifar100(source=str(tmp_path / "copy")).open("train")
    done = opened("timed", tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    figures, imported = done.stdout.splitlines()
    count, seconds, sha256 = figures.split()
    assert int(count) == 300 and sha256 == first.identity.sha256
    assert float(seconds) < 0.2
    assert imported == "[]"


def test_a_changed_file_is_another_store(tmp_path: Path, train_copy: Copy) -> None:
    other = Copy(300, seed=9)
    train_copy.write_parquet(tmp_path / "train.parquet")
    before = Cifar100(source=str(tmp_path)).open("train")
    other.write_parquet(tmp_path / "train.parquet")
    os.utime(tmp_path / "train.parquet", (1, 1))  # an old time on new bytes
    after = Cifar100(source=str(tmp_path)).open("train")
    np.testing.assert_array_equal(before.images, train_copy.chw())
    np.testing.assert_array_equal(after.images, other.chw())


def test_the_same_files_elsewhere_share_a_store(tmp_path: Path, cache: Path, train_copy: Copy) -> None:
    train_copy.write_parquet(tmp_path / "a" / "train.parquet")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("a", "b"):
        Cifar100(source=str(tmp_path / name)).open("train")
    assert meta(cache)["identity"]["count"] == 300  # there is exactly one


def _open_counting(counter: Path, cache: Path) -> None:
    """Run in a process of its own: note each drawing in a file."""
    os.environ["CIFAR100_TK_CACHE"] = str(cache)
    blocks = shapes100.Shapes100.blocks

    def counted(self: shapes100.Shapes100):  # type: ignore[no-untyped-def]
        with open(counter, "a") as file:
            file.write("x")
        time.sleep(0.5)  # long enough for the others to arrive
        yield from blocks(self)

    shapes100.Shapes100.blocks = counted  # type: ignore[method-assign]
    assert len(SMALL.open("train")) == 1000


def test_of_several_processes_one_writes_and_the_others_wait(tmp_path: Path, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_open_counting, args=(tmp_path / "counter", cache)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "x"


def test_a_writer_killed_midway_leaves_nothing_that_is_taken_for_whole(cache: Path) -> None:
    done = opened("killed", "shapes100")
    assert done.returncode == -signal.SIGKILL
    (left,) = [entry for entry in (cache / "stores").iterdir() if entry.is_dir()]
    assert left.name.startswith(".tmp-") and (left / "images.npy").exists()

    split = SMALL.open("train")
    assert len(split) == 1000 and split.images[999].any()
    assert not left.exists()


@pytest.mark.parametrize("damage", ["shorter", "header", "labels", "meta", "no labels"])
def test_a_damaged_store_is_noticed_and_written_again(damage: str, cache: Path) -> None:
    expected = np.array(SMALL.open("test").images)
    (folder,) = [entry for entry in (cache / "stores").iterdir() if entry.is_dir()]
    if damage == "shorter":
        os.truncate(folder / "images.npy", 5000)
    elif damage == "header":
        content = bytearray((folder / "images.npy").read_bytes())
        content[:8] = b"PK\x03\x04gone"
        (folder / "images.npy").write_bytes(content)
    elif damage == "labels":
        content = bytearray((folder / "labels.npy").read_bytes())
        content[-8] ^= 1
        (folder / "labels.npy").write_bytes(content)
    elif damage == "meta":
        (folder / "meta.json").write_text("{")
    else:
        (folder / "labels.npy").unlink()
    again = SMALL.open("test")
    np.testing.assert_array_equal(again.images, expected)
    np.testing.assert_array_equal(np.bincount(again.labels), np.ones(100))


def test_a_full_disk_says_how_much_is_needed_and_free(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 12_345, 12_345))
    with pytest.raises(
        DiskError, match=r"3,188,000 bytes are needed and 12,345 are free; make room or set CIFAR100_TK_CACHE"
    ):
        SMALL.open("train")
    assert not list(cache.glob("stores/.tmp-*"))


def test_a_disk_that_fills_up_while_writing_is_the_same_sentence(cache: Path) -> None:
    done = opened("small-files", "shapes100")
    assert done.returncode == 5
    assert "(File too large): 3,188,000 bytes are needed" in done.stderr and "CIFAR100_TK_CACHE" in done.stderr
    assert not [entry for entry in (cache / "stores").iterdir() if entry.is_dir()]


def test_a_folder_that_is_closed_to_us_is_said_for_the_cache_and_for_the_data(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    for source, exit_code, message in (
        (
            "shapes100",
            5,
            "(Permission denied): it is not writable; set CIFAR100_TK_CACHE to another folder that you own",
        ),
        (str(closed / "copy"), 3, "cannot be read (Permission denied); make it readable, or give another copy."),
    ):
        done = opened("nobody", source, CIFAR100_TK_CACHE=str(closed / "cache"))
        assert done.returncode == exit_code and message in done.stderr, done.stderr
    closed.chmod(0o700)


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")  # no permission would do, but root has it anyway
    monkeypatch.setenv("CIFAR100_TK_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        DiskError, match=r"cannot write .* \(Not a directory\): set CIFAR100_TK_CACHE to another folder"
    ):
        SMALL.open("test")
