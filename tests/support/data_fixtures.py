"""Small local copies of CIFAR-100-like data, written by code that shares nothing with the package's readers."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from cifar100_tk.data import COARSE_OF_FINE

NUM_TRAIN, NUM_TEST = 300, 100


class Copy:
    """Random images with labels. images: (N, 32, 32, 3) uint8; fine, coarse: (N,) int64."""

    def __init__(self, num_rows: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.images = generator.integers(0, 256, (num_rows, 32, 32, 3), dtype=np.uint8)
        self.fine = generator.permutation(np.arange(num_rows) % 100)
        self.coarse = np.array(COARSE_OF_FINE)[self.fine]

    def chw(self) -> NDArray[np.uint8]:
        """(N, 3, 32, 32)"""
        return self.images.transpose(0, 3, 1, 2)

    def cells(self) -> list[dict[str, Any]]:
        return [{"bytes": png(image), "path": None} for image in self.images]

    def write_parquet(self, path: Path, cells: list[dict[str, Any]] | None = None, **columns: Any) -> Path:
        """Write the Hub's columns, or others in their place."""
        path.parent.mkdir(parents=True, exist_ok=True)
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        content = {"img": pa.array(self.cells() if cells is None else cells, image)}
        content |= {"fine_label": pa.array(self.fine), "coarse_label": pa.array(self.coarse)}
        pq.write_table(pa.table(content | columns), path)
        return path

    def binary(self) -> bytes:
        """The official format: coarse, fine, then 3,072 bytes of CHW."""
        return b"".join(
            bytes([coarse, fine]) + image.tobytes()
            for coarse, fine, image in zip(self.coarse.tolist(), self.fine.tolist(), self.chw(), strict=True)
        )


def cifar10_batches() -> tuple[dict[str, bytes], NDArray[np.uint8], NDArray[np.int64]]:
    """The official binary files of a small CIFAR-10, ten images in each of five and thirty of test.

    Also returns their images, (80, 3, 32, 32), and labels, (80,), in that order.
    """
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (80, 3, 32, 32), dtype=np.uint8)
    labels = generator.permutation(np.arange(80) % 10)
    for part in range(0, 50, 10):  # Every class is in train and in test.
        labels[part : part + 10] = generator.permutation(10)
    labels[50:] = generator.permutation(np.arange(30) % 10)
    records = [bytes([label]) + image.tobytes() for label, image in zip(labels.tolist(), images, strict=True)]
    files = {f"data_batch_{n + 1}.bin": b"".join(records[10 * n : 10 * n + 10]) for n in range(5)}
    return files | {"test_batch.bin": b"".join(records[50:])}, images, labels


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def meta(folder: Path) -> dict[str, Any]:
    """The description of the only store in a cache."""
    (found,) = folder.glob("stores/*/meta.json")
    content: dict[str, Any] = json.loads(found.read_text())
    return content
