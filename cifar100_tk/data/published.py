"""The published data sets: where they are, what their copies look like, and the digests of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, final

from cifar100_tk.data.labels import CIFAR10_NAMES
from cifar100_tk.data.rows import Names


@final
@dataclass(frozen=True, kw_only=True)
class Published:
    """A data set of 32x32 RGB images as its authors and the Hub publish it."""

    name: str
    """Its name in text."""
    repository: str
    """Its repository on the Hub."""
    revision: str
    """The pinned commit, so that later changes to the repository do not change a run's data."""
    folder: str
    """The folder of its parquet files in the repository."""
    columns: tuple[str, ...]
    """The columns of its parquet files: image, class and, if there are super-classes, super-class."""
    names: Names
    """The names of its classes and super-classes."""
    archive: str
    """The official archive of binary files, a tar.gz, without its extension."""
    binary_folder: str
    """The folder in that archive."""
    binary: Mapping[str, tuple[str, ...]]
    """For each split its binary files, in order, without `.bin`."""
    python_folder: str
    """The folder of its pickles, which are never loaded."""
    sentences: Mapping[str, str] = field(default_factory=dict)
    """For each split the name of the published images, if they are recognized by their files."""
    files: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    """For the sha256 of all files of a split, in order, that split."""
    archive_sha256: str | None = None
    """The sha256 of the official archive."""
    unknown: str
    """The name of other images."""
    preparing: str
    """The command that makes a local copy."""

    def sentence(self, files: tuple[str, ...]) -> str:
        """Return the name of the images in some files. files: their sha256, in order."""
        return self.sentences[self.files[files]] if files in self.files else self.unknown

    @property
    def record(self) -> int:
        """Bytes per image in a binary file: the super-class if there are any, the class, and 32x32 red, green and blue."""
        return len(self.columns) - 1 + 3 * 32 * 32


CIFAR100: Final = Published(
    name="CIFAR-100",
    repository="uoft-cs/cifar100",
    revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5",
    folder="cifar100",
    columns=("img", "fine_label", "coarse_label"),
    names=Names(),
    archive="cifar-100-binary",
    binary_folder="cifar-100-binary",
    binary={"train": ("train",), "test": ("test",)},
    python_folder="cifar-100-python",
    unknown="not the published CIFAR-100 images",
    preparing="python -m cifar100_tk.data prepare --to FOLDER",
)

_BATCHES = (
    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
)

CIFAR10: Final = Published(
    name="CIFAR-10",
    repository="uoft-cs/cifar10",
    revision="0b2714987fa478483af9968de7c934580d0bb9a2",
    folder="plain_text",
    columns=("img", "label"),
    names=Names(fine=CIFAR10_NAMES, coarse=()),
    archive="cifar-10-binary",
    binary_folder="cifar-10-batches-bin",
    binary={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    python_folder="cifar-10-batches-py",
    # As torchvision for Ruby lists the binary files and the archive, and the Hub its parquet files at this revision. No
    # digest of the images alone is known, so the same images in other files are not recognized.
    sentences={"train": "these are the CIFAR-10 training images", "test": "these are the CIFAR-10 test images"},
    files={
        _BATCHES: "train",
        ("8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",): "test",
        ("8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",): "train",
        ("841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",): "test",
    },
    archive_sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    unknown="not verified to be the published CIFAR-10 images",
    preparing="python -m cifar100_tk.data prepare --data-set cifar10 --to FOLDER",
)
