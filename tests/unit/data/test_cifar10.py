"""CIFAR-10 in all its forms: the same pixels and labels, known files by their digests, and what is wrong in a sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import exit_code
from data_fixtures import cifar10_batches, png, write_files, write_tar

from cifar100_tk.data import Cifar10, Cifar100, Data, data_of_classes, hub
from cifar100_tk.data.__main__ import main
from cifar100_tk.data.copies import prepare, verify
from cifar100_tk.data.published import CIFAR10, CIFAR100
from cifar100_tk.errors import ConfigError, DataError, HubError
from cifar100_tk.recipe import to_json

pytestmark = pytest.mark.usefixtures("cache")

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES, IMAGES, LABELS = cifar10_batches()
TRAIN = 50


def batches(folder: Path) -> Path:
    return write_files(folder, FILES)


def archive(folder: Path) -> Path:
    # In an order like that of the published archive, which is not that of the batches.
    order = [1, 3, 4, "test", 5, 2]
    names = [f"data_batch_{n}.bin" if isinstance(n, int) else "test_batch.bin" for n in order]
    members = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
    members |= {f"cifar-10-batches-bin/{name}": FILES[name] for name in names}
    return write_tar(folder.with_suffix(".tar.gz"), members)


def parquet(folder: Path) -> Path:
    (folder / "plain_text").mkdir(parents=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, rows in (("train", range(50)), ("test", range(50, 80))):
        cells = [{"bytes": png(IMAGES[row].transpose(1, 2, 0)), "path": None} for row in rows]
        table = pa.table({"img": pa.array(cells, image), "label": pa.array(LABELS[list(rows)])})
        pq.write_table(table, folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("make", [batches, archive, parquet])
def test_every_form_gives_the_same_pixels_labels_and_identity(make: Callable[[Path], Path], tmp_path: Path) -> None:
    data = Cifar10(source=str(make(tmp_path / "copy")))
    train, test = data.open("train"), data.open("test")
    np.testing.assert_array_equal(train.images, IMAGES[:TRAIN])
    np.testing.assert_array_equal(train.labels, LABELS[:TRAIN])
    np.testing.assert_array_equal(test.images, IMAGES[TRAIN:])
    assert train.class_names == NAMES and not train.coarse_names and not train.coarse_of_fine
    rows = [IMAGES[row].transpose(1, 2, 0).tobytes() + bytes([LABELS[row]]) for row in range(TRAIN)]
    digests = [hashlib.sha256(row).digest() for row in rows]
    assert train.identity.rows_sha256 == hashlib.sha256(b"".join(digests)).hexdigest()
    assert train.identity.sentence == "not verified to be the published CIFAR-10 images"


def test_published_files_are_known_by_their_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(map(len, CIFAR10.files)) == [1, 1, 1, 5] and CIFAR10.archive_sha256
    digests = [CIFAR10.archive_sha256, *(digest for files in CIFAR10.files for digest in files)]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    ours = tuple(hashlib.sha256(FILES[f"data_batch_{n}.bin"]).hexdigest() for n in range(1, 6))
    packed = archive(tmp_path / "packed")
    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
    monkeypatch.setattr(
        Cifar10, "published", dataclasses.replace(CIFAR10, files={ours: "train"}, archive_sha256=sha256)
    )
    train, test = verify(Cifar10(source=str(packed)))
    assert test.identity.sentence == "these are the CIFAR-10 test images" and test.difference is None
    train, test = verify(Cifar10(source=str(batches(tmp_path / "copy"))))
    assert train.identity.sentence == "these are the CIFAR-10 training images"
    assert train.difference is None and test.difference == "test has 30 images, 10,000 expected"


def test_the_hub_is_believed_at_the_pinned_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets: Any = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES)))
    cells = [{"bytes": png(image.transpose(1, 2, 0)), "path": None} for image in IMAGES[TRAIN:]]
    rows = datasets.Dataset.from_dict({"img": cells, "label": LABELS[TRAIN:].tolist()}, features=features)
    # As the cache of `datasets` does, each commit in a folder of its name.
    for commit, sentence in ((CIFAR10.revision, CIFAR10.sentences["test"]), ("0" * 40, CIFAR10.unknown)):
        rows.save_to_disk(tmp_path / commit / "test")
        monkeypatch.setenv("CIFAR100_TK_CACHE", str(tmp_path / "cache" / commit))
        folder = str(tmp_path / commit / "test")
        monkeypatch.setattr(hub, "load", lambda *_, folder=folder: datasets.load_from_disk(folder))
        split = Cifar10().open("test")
        assert split.identity.sentence == sentence and split.class_names == NAMES
        np.testing.assert_array_equal(split.images, IMAGES[TRAIN:])
        np.testing.assert_array_equal(Cifar10(source=folder).open("test").images, IMAGES[TRAIN:])


def test_the_same_bytes_are_other_images_in_another_data_set(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"")
    folder = batches(tmp_path / "copy")
    keys = {split: origin.key() for split, origin in Cifar10(source=str(folder)).origins().items()}
    assert keys["train"] != keys["test"] and all(key.startswith("cifar-10-binary-") for key in keys.values())
    with pytest.raises(
        DataError, match=r"contains the files of CIFAR-10, not of CIFAR-100; use a recipe for CIFAR-10\."
    ):
        Cifar100(source=str(folder)).open("train")


def test_the_same_number_of_each_of_ten_classes_is_held_out(tmp_path: Path) -> None:
    source = str(batches(tmp_path / "copy"))
    held, rest = (Cifar10(source=source, holdout=20).open(split) for split in ("holdout", "train"))
    assert np.bincount(LABELS[held.index]).tolist() == [2] * 10
    assert sorted([*held.index, *rest.index]) == list(range(TRAIN))
    again = Cifar10(source=str(archive(tmp_path / "packed")), holdout=20).open("holdout")
    np.testing.assert_array_equal(held.index, again.index)
    with pytest.raises(ConfigError, match=r"from 10 classes; use a multiple of 10 from 0 up, such as 10 or 20\."):
        Cifar10(source=source, holdout=15).open("train")


def test_a_prepared_copy_holds_the_same_images(tmp_path: Path) -> None:
    data = Cifar10(source=str(batches(tmp_path / "copy")))
    files = prepare(data, tmp_path / "prepared")
    assert [file.parent.name for file in files] == ["plain_text"] * 2
    copied, train = Cifar10(source=str(tmp_path / "prepared")).open("train"), data.open("train")
    assert copied.identity == train.identity and copied.class_names == NAMES


def test_the_command_line_verifies_a_copy_of_either_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(batches(tmp_path / "copy")), "--data-set", "cifar10"]
    assert exit_code(main, *arguments) == 3
    said = capsys.readouterr()
    assert "train: 50 images, 5 of each of the 10 classes" in said.out
    assert "is not the published CIFAR-10: train has 50 images, 50,000 expected; test has 30 images" in said.err


def test_a_recipe_file_names_its_data_set(tmp_path: Path) -> None:
    for data in (Cifar10(source="x", holdout=50), Cifar100(holdout_seed=3, shapes100_rows=(100, 200))):
        written = json.loads(json.dumps({"data": to_json(data)}))
        assert Data.of_recipe(written, tmp_path, "measure again.") == data
    with pytest.raises(DataError, match=r"does not say which data the run used \('Imagenet'\); measure again\."):
        Data.of_recipe({"data": {"type": "Imagenet", "source": "hub"}}, tmp_path, "measure again.")
    assert data_of_classes(NAMES) == Cifar10() and data_of_classes(("apple",)) == Cifar100()


def lacks_one(folder: Path) -> Path:
    (batches(folder) / "data_batch_3.bin").unlink()
    (folder / "test_batch.bin").unlink()
    return folder


def torn(folder: Path) -> Path:
    (batches(folder) / "data_batch_2.bin").write_bytes(FILES["data_batch_2.bin"][:-1])
    return folder


def wrong_label(folder: Path) -> Path:
    (batches(folder) / "data_batch_1.bin").write_bytes(bytes([10]) + FILES["data_batch_1.bin"][1:])
    return folder


def pickles(folder: Path) -> Path:
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    return folder


def packed_pickles(folder: Path) -> Path:
    return write_tar(folder.with_suffix(".tar.gz"), {"cifar-10-batches-py/data_batch_1": b"pickle"})


def other_columns(folder: Path) -> Path:
    path = parquet(folder) / "plain_text" / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).rename_columns(["img", "fine_label"]), path)
    return folder


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lacks_one, r"lacks data_batch_3\.bin; copy the whole cifar-10-batches-bin folder again\."),
        (torn, r"data_batch_2\.bin has 30,729 bytes; expected a multiple of 3073, one record per image"),
        (wrong_label, r"data_batch_1\.bin, row 0: label=10 is out of range; expected 0 to 9\."),
        (pickles, r"cifar-10-batches-py is a pickle, .* Use the cifar-10-binary files"),
        (packed_pickles, r"contains pickles, .*cifar-10-binary\.tar\.gz, which contains the same images\."),
        (other_columns, r"has no column label; its columns are img, fine_label\. Expected img, label\."),
        (lambda folder: folder, r"does not exist\. Expected hub, or the path of .*plain_text/train-"),
    ],
)
def test_what_is_wrong_with_a_copy_is_a_sentence(make: Callable[[Path], Path], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence):
        Cifar10(source=str(make(tmp_path / "copy"))).open("train")


def test_without_network_the_hub_of_cifar10_names_two_ways_on() -> None:
    with pytest.raises(HubError, match=r"uoft-cs/cifar10 could not be loaded.* Two alternatives:") as error:
        Cifar10().open("test")
    assert "prepare --data-set cifar10 --to FOLDER" in str(error.value) and "shapes100" not in str(error.value)
    assert CIFAR100.revision != CIFAR10.revision
