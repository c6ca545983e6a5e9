"""Every kind of source gives the same pixels and labels, and everything wrong with one is said in a sentence."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import Copy, png, write_tar
from processes import PROGRAMS

from cifar100_tk.data import COARSE_NAMES, COARSE_OF_FINE, FINE_NAMES, Cifar100, hub, source_name
from cifar100_tk.data.copies import verify
from cifar100_tk.data.published import CIFAR100, Published
from cifar100_tk.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("cache")


def write(kind: str, folder: Path, train: Copy, test: Copy) -> Path:
    if kind == "hub layout":
        train.write_parquet(folder / "cifar100" / "train-00000-of-00001.parquet")
        test.write_parquet(folder / "cifar100" / "test-00000-of-00001.parquet")
    elif kind == "flat parquet":
        train.write_parquet(folder / "train.parquet")
        test.write_parquet(folder / "test.parquet")
    elif kind == "binary":
        folder.mkdir()
        (folder / "train.bin").write_bytes(train.binary())
        (folder / "test.bin").write_bytes(test.binary())
    elif kind == "tar.gz":
        members = {f"cifar-100-binary/{name}.bin": copy.binary() for name, copy in (("train", train), ("test", test))}
        return write_tar(folder.with_suffix(".tar.gz"), {"cifar-100-binary/fine_label_names.txt": b"apple\n"} | members)
    else:
        assert kind == "save_to_disk"
        saved(train, test).save_to_disk(folder, max_shard_size="200KB")  # several files a split
    return folder


def saved(train: Copy, test: Copy) -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        img=datasets.Image(),
        fine_label=datasets.ClassLabel(names=list(FINE_NAMES)),
        coarse_label=datasets.ClassLabel(names=list(COARSE_NAMES)),
    )
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {"img": copy.cells(), "fine_label": copy.fine.tolist(), "coarse_label": copy.coarse.tolist()},
                features=features,
            )
            for name, copy in (("train", train), ("test", test))
        }
    )


@pytest.mark.parametrize("kind", ["hub layout", "flat parquet", "binary", "tar.gz", "save_to_disk"])
def test_every_local_kind_gives_the_same_pixels_and_labels(
    kind: str, tmp_path: Path, train_copy: Copy, test_copy: Copy
) -> None:
    data = Cifar100(source=str(write(kind, tmp_path / "copy", train_copy, test_copy)))
    for split, copy in ((data.open("train"), train_copy), (data.open("test"), test_copy)):
        np.testing.assert_array_equal(split.images, copy.chw())
        np.testing.assert_array_equal(split.labels, copy.fine)
        np.testing.assert_array_equal(split.index, np.arange(len(copy.fine)))
        assert split.class_names == FINE_NAMES and split.coarse_of_fine == COARSE_OF_FINE
        assert not split.images.flags.writeable


def test_the_hub_gives_the_same_pixels_and_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, train_copy: Copy, test_copy: Copy
) -> None:
    asked: list[str] = []

    def load(split: str, published: Published) -> Any:
        asked.append(split)
        return saved(train_copy, test_copy)[split]

    monkeypatch.setattr(hub, "load", load)
    for _ in range(2):
        split = Cifar100().open("test")
        np.testing.assert_array_equal(split.images, test_copy.chw())
    assert asked == ["test"]


def test_the_hub_is_asked_for_one_revision_and_the_store_is_named_after_it(
    monkeypatch: pytest.MonkeyPatch, cache: Path, test_copy: Copy
) -> None:
    datasets: Any = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(*names: str, **options: str) -> Any:
        asked.append((names, options))
        return saved(test_copy, test_copy)["test"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_unreachable", lambda published: None)
    Cifar100().open("test")
    assert asked == [(("uoft-cs/cifar100",), {"revision": CIFAR100.revision, "split": "test"})]
    assert len(list(cache.glob(f"stores/*{CIFAR100.revision[:12]}-test"))) == 1


def test_a_single_parquet_file_is_a_source(tmp_path: Path, train_copy: Copy) -> None:
    path = train_copy.write_parquet(tmp_path / "train-00000-of-00001.parquet")
    assert len(Cifar100(source=str(path)).open("train")) == len(train_copy.fine)


def test_names_in_a_file_are_its_own(tmp_path: Path, train_copy: Copy) -> None:
    own = [f"class {number}" for number in range(100)]
    features = {"fine_label": {"names": own}, "coarse_label": {"names": [f"group {number}" for number in range(20)]}}
    path = train_copy.write_parquet(tmp_path / "train.parquet")
    table = pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    split = Cifar100(source=str(path)).open("train")
    assert split.class_names == tuple(own)
    assert split.coarse_of_fine == COARSE_OF_FINE  # worked out from the rows


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_and_cache_the_hub_names_three_ways_on_quickly(offline: bool, tmp_path: Path) -> None:
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment |= {"HF_HUB_OFFLINE": str(int(offline)), "PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.monotonic()
    command = [sys.executable, str(PROGRAMS / "open_store.py"), "plainly", "hub"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert time.monotonic() - start < 45
    assert done.returncode == 8 and done.stdout == ""
    assert done.stderr.startswith("train: uoft-cs/cifar100 could not be loaded. Tried")
    assert ("HF_HUB_OFFLINE is set" if offline else "Connection refused") in done.stderr
    for way in ("prepare --to FOLDER", "HF_ENDPOINT to a mirror", "--data.source shapes100"):
        assert way in done.stderr
    assert len(done.stderr.splitlines()) == 4


def test_a_truncated_parquet_file_is_named(tmp_path: Path, train_copy: Copy) -> None:
    path = train_copy.write_parquet(tmp_path / "train.parquet")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"train\.parquet is not a valid data file .*; copy it again"):
        Cifar100(source=str(tmp_path)).open("train")


@pytest.mark.parametrize("offset", [1 << 30, -5, 7])
def test_a_damaged_offset_of_an_image_in_an_arrow_file_is_a_sentence(
    offset: int, tmp_path: Path, train_copy: Copy
) -> None:
    saved(train_copy, train_copy)["train"].save_to_disk(tmp_path)
    (path,) = tmp_path.glob("*.arrow")
    with pa.OSFile(str(path)) as source:
        batch = next(iter(pa.ipc.open_stream(source)))
    offsets = batch.column("img").field("bytes").buffers()[1].to_pybytes()[: 4 * len(batch)]
    content = path.read_bytes()
    place = content.index(offsets) + 4 * 50  # of the first batch
    path.write_bytes(content[:place] + offset.to_bytes(4, "little", signed=True) + content[place + 4 :])
    # In a process of its own, which pyarrow ended with SIGSEGV before.
    command = [sys.executable, "-m", "cifar100_tk.data", "verify", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert f"{path} is not a valid data file" in done.stderr and done.stderr.endswith("; copy it again.\n")


def test_a_damaged_name_of_a_column_in_an_arrow_file_is_a_sentence(tmp_path: Path, train_copy: Copy) -> None:
    saved(train_copy, train_copy)["train"].save_to_disk(tmp_path)
    (path,) = tmp_path.glob("*.arrow")
    path.write_bytes(path.read_bytes().replace(b"coarse_label", b"\xffoarse_label"))
    with pytest.raises(DataError, match=r"\.arrow is not a valid data file \('utf-8' codec can't decode byte 0xff"):
        Cifar100(source=str(tmp_path)).open("train")


def test_a_missing_shard_is_noticed(tmp_path: Path, train_copy: Copy) -> None:
    train_copy.write_parquet(tmp_path / "train-00000-of-00002.parquet")
    with pytest.raises(DataError, match=r"has 1 of the 2 train-\*\.parquet files"):
        Cifar100(source=str(tmp_path)).open("train")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("fine_label", 100, r"row 7: fine_label=100 is out of range; expected 0 to 99"),
        ("fine_label", -1, r"row 7: fine_label=-1 is out of range"),
        ("coarse_label", 20, r"row 7: coarse_label=20 is out of range; expected 0 to 19"),
    ],
)
def test_a_label_out_of_range_is_named(column: str, value: int, message: str, tmp_path: Path, train_copy: Copy) -> None:
    labels = (train_copy.fine if column == "fine_label" else train_copy.coarse).copy()
    labels[7] = value
    train_copy.write_parquet(tmp_path / "train.parquet", **{column: pa.array(labels)})
    with pytest.raises(DataError, match=r"train\.parquet, " + message):
        Cifar100(source=str(tmp_path)).open("train")


def test_a_class_in_the_wrong_super_class_is_named(tmp_path: Path, train_copy: Copy) -> None:
    coarse = train_copy.coarse.copy()
    coarse[42] = (coarse[42] + 1) % 20
    train_copy.write_parquet(tmp_path / "train.parquet", coarse_label=pa.array(coarse))
    with pytest.raises(DataError, match=rf"row 42: coarse_label={coarse[42]} does not match fine_label="):
        Cifar100(source=str(tmp_path)).open("train")


def test_a_missing_class_is_named(tmp_path: Path) -> None:
    copy = Copy(300, seed=3)
    copy.fine[copy.fine == 17] = 18
    copy.coarse = np.array(COARSE_OF_FINE)[copy.fine]
    copy.write_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"1 of 100 classes have no images, such as 17 \(castle\)"):
        Cifar100(source=str(tmp_path)).open("train")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((48, 64, 3), np.uint8), r"row 5: the image is 64x48 RGB; expected 32x32 RGB"),
        (np.zeros((32, 32), np.uint8), r"row 5: the image is 32x32 L; expected 32x32 RGB"),
        (np.zeros((32, 32, 4), np.uint8), r"row 5: the image is 32x32 RGBA; expected 32x32 RGB"),
    ],
)
def test_an_image_of_another_size_or_mode_is_named(image: Any, message: str, tmp_path: Path, train_copy: Copy) -> None:
    cells = train_copy.cells()
    cells[5] = {"bytes": png(image), "path": None}
    train_copy.write_parquet(tmp_path / "train.parquet", cells)
    with pytest.raises(DataError, match=message):
        Cifar100(source=str(tmp_path)).open("train")


def test_an_image_cut_short_is_named(tmp_path: Path, train_copy: Copy) -> None:
    cells = train_copy.cells()
    cells[5]["bytes"] = cells[5]["bytes"][:200]
    train_copy.write_parquet(tmp_path / "train.parquet", cells)
    with pytest.raises(DataError, match=r"row 5: the image cannot be decoded"):
        Cifar100(source=str(tmp_path)).open("train")


@pytest.mark.parametrize("local", [True, False])
def test_a_cell_with_a_path_instead_of_bytes_is_never_opened(local: bool, tmp_path: Path, train_copy: Copy) -> None:
    cells = train_copy.cells()
    (tmp_path / "secret.png").write_bytes(cells[0]["bytes"])  # a sound image, there for the taking
    cells[9] = {"bytes": None, "path": str(tmp_path / "secret.png") if local else "http://127.0.0.1:9/secret.png"}
    train_copy.write_parquet(tmp_path / "train.parquet", cells)
    with pytest.raises(
        DataError, match=r"train\.parquet, row 9: the image has no bytes; .* never opened\. Embed the bytes"
    ):
        Cifar100(source=str(tmp_path)).open("train")


def test_missing_columns_are_named(tmp_path: Path, train_copy: Copy) -> None:
    path = train_copy.write_parquet(tmp_path / "train.parquet")
    pq.write_table(pq.read_table(path).rename_columns(["image", "fine_label", "coarse_label"]), path)
    with pytest.raises(DataError, match=r"has no column img; its columns are image, fine_label, coarse_label"):
        Cifar100(source=str(tmp_path)).open("train")


@pytest.mark.parametrize("name", ["data.pkl", "model.pt", "model.pth", "pytorch_model.bin"])
def test_pickles_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({}))
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match=r"loading a pickle can run any code.*cifar-100-binary"):
            Cifar100(source=str(source)).open("train")


def test_the_official_python_files_are_refused_as_folder_and_archive(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps({}))
    archive = write_tar(tmp_path / "cifar-100-python.tar.gz", {"cifar-100-python/train": pickle.dumps({})})
    for source in (folder, archive):
        with pytest.raises(
            DataError, match=r"pickles?, and loading a pickle can run any code.*cifar-100-binary\.tar\.gz"
        ):
            Cifar100(source=str(source)).open("train")


def test_a_binary_file_or_archive_cut_short_is_named(tmp_path: Path, train_copy: Copy) -> None:
    (tmp_path / "train.bin").write_bytes(train_copy.binary()[:-10])
    with pytest.raises(DataError, match=r"train\.bin has 922,190 bytes; expected a multiple of 3074"):
        Cifar100(source=str(tmp_path)).open("train")
    archive = write_tar(tmp_path / "copy.tar.gz", {"train.bin": train_copy.binary()})
    archive.write_bytes(archive.read_bytes()[:-50_000])
    with pytest.raises(DataError, match=r"copy\.tar\.gz is not a complete tar\.gz"):
        Cifar100(source=str(archive)).open("train")


@pytest.mark.parametrize("place", [0, 5_000, 460_000, -8])
def test_a_tar_gz_with_a_wrong_byte_is_named_wherever_it_is(place: int, tmp_path: Path, train_copy: Copy) -> None:
    archive = write_tar(tmp_path / "copy.tar.gz", {"train.bin": train_copy.binary(), "notes.txt": b"x" * 5000})
    content = bytearray(archive.read_bytes())
    content[place] ^= 0xFF  # the magic number, the packed images twice, and the checksum that ends the file
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"copy\.tar\.gz is not a complete tar\.gz \(.*\); download it again"):
        Cifar100(source=str(archive)).open("train")
    with pytest.raises(DataError, match=r"copy\.tar\.gz is not a complete tar\.gz \(.*\); download it again"):
        verify(Cifar100(source=str(archive)))


@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress, lambda content: lzma.compress(content)[:-500]])
def test_a_tar_of_another_compression_is_refused(
    compress: Callable[[bytes], bytes], tmp_path: Path, train_copy: Copy
) -> None:
    archive = write_tar(tmp_path / "copy.tar.gz", {"train.bin": train_copy.binary()})
    archive.write_bytes(compress(gzip.decompress(archive.read_bytes())))
    with pytest.raises(DataError, match=r"copy\.tar\.gz is not a complete tar\.gz"):
        Cifar100(source=str(archive)).open("train")


def test_a_plain_tar_is_a_source(tmp_path: Path, train_copy: Copy) -> None:
    archive = write_tar(tmp_path / "copy.tar", {"train.bin": train_copy.binary()})
    archive.write_bytes(gzip.decompress(archive.read_bytes()))
    np.testing.assert_array_equal(Cifar100(source=str(archive)).open("train").images, train_copy.chw())


def test_a_missing_split_names_those_there_and_the_way_on(tmp_path: Path, train_copy: Copy) -> None:
    train_copy.write_parquet(tmp_path / "train.parquet")
    with pytest.raises(
        DataError, match=r"no test split, only train; .*train with --data\.holdout 5000 .*\(--split holdout\)"
    ):
        Cifar100(source=str(tmp_path)).open("test")
    (tmp_path / "train.parquet").rename(tmp_path / "test.parquet")
    with pytest.raises(
        DataError, match="no train split, only test; expected train and test: training needs it; add it"
    ):
        Cifar100(source=str(tmp_path)).open("train")


def test_a_path_that_is_not_there_or_holds_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source='shapes10' does not exist.*neither hub nor shapes100"):
        Cifar100(source="shapes10").open("train")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"contains no supported data; it contains notes\.txt"):
        Cifar100(source=str(tmp_path)).open("train")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"split='val' is not a split; use train, holdout or test"):
        Cifar100(source="shapes100")._check("val")  # the type checker of the test run refuses it in `open`


def test_a_local_copy_is_handed_on_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "somebody" / "images" / "inside"
    inside.mkdir(parents=True)
    (tmp_path / "mine").symlink_to(inside)
    monkeypatch.chdir(inside)
    named = {".": "inside", "": "inside", "..": "images", "../": "images", "../a.tar.gz": "a.tar.gz", "b": "b"}
    named |= {str(tmp_path / "mine"): "mine", "/home/somebody/no\0name": "no\0name"}
    named |= {"hub": "hub", "shapes100": "shapes100"}
    assert {source: source_name(source) for source in named} == named
