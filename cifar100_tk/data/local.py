"""Detects the kind of a local copy and finds its splits without opening an image."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Final

from cifar100_tk.data.binary import BinaryFile, TarMember, tar_members
from cifar100_tk.data.digests import reading
from cifar100_tk.data.rows import SPLITS, Source
from cifar100_tk.data.table import TableFiles
from cifar100_tk.errors import DataError

_KINDS: Final = (
    "a folder of parquet files in the Hub's layout (cifar100/train-*.parquet, cifar100/test-*.parquet), one parquet "
    "file, a save_to_disk folder, or the official cifar-100-binary folder or tar.gz"
)
_PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npz", ".joblib")
_MAX_JSON_BYTES: Final = 10_000_000
_PART: Final = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


def local_origins(source: str) -> dict[str, Source]:
    """Find the splits of a local copy, at least one of train and test. Raises DataError for anything else."""
    path = Path(source).expanduser()
    with reading(path):
        there = path.exists()
    if not there:
        near = "" if os.sep in source else " It is neither hub nor shapes100, so it was treated as a path."
        raise DataError(f"source={source!r} does not exist.{near} Expected hub, shapes100, or the path of {_KINDS}.")
    with reading(path):
        return _file(path) if path.is_file() else _folder(path)


def _file(path: Path) -> dict[str, Source]:
    name = path.name
    if name.endswith((".tar.gz", ".tgz", ".tar")):
        return {split: TarMember(path, split) for split in tar_members(path)}
    if name.endswith(".parquet"):
        split = "test" if name.startswith("test") else "train"
        return {split: TableFiles(path, [path])}
    if name in ("train.bin", "test.bin"):
        raise DataError(f"{path} is one file of the official cifar-100-binary folder; give the folder: {path.parent}.")
    if name.endswith(_PICKLES):
        raise DataError(_refusal(path))
    raise DataError(f"{path} is not a supported data file. Expected {_KINDS}.")


def _folder(path: Path) -> dict[str, Source]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved(path)
    for folder in (path / "cifar100", path / "data", path):
        if files := sorted(folder.glob("*.parquet")):
            return _parquet(folder, files)
    if found := {split: path / f"{split}.bin" for split in SPLITS if (path / f"{split}.bin").is_file()}:
        return {split: BinaryFile(file) for split, file in found.items()}
    if (path / "meta").is_file() and ((path / "train").is_file() or (path / "test").is_file()):
        raise DataError(_refusal(path))
    if (path / "cifar-100-binary").is_dir():
        raise DataError(f"{path} is not the data itself; give the folder inside it: {path / 'cifar-100-binary'}.")
    if (path / "cifar-100-python").is_dir():
        raise DataError(_refusal(path / "cifar-100-python"))
    if pickles := sorted(file for file in path.iterdir() if file.name.endswith(_PICKLES)):
        raise DataError(_refusal(pickles[0]))
    some = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    raise DataError(f"{path} contains no supported data; it contains {some}. Expected {_KINDS}.")


def _refusal(path: Path) -> str:
    return (
        f"{path} is a pickle, and loading a pickle can run any code. Use the cifar-100-binary files "
        "(https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz) or parquet "
        "(python -m cifar100_tk.data prepare --to FOLDER)."
    )


def _parquet(folder: Path, files: list[Path]) -> dict[str, Source]:
    origins: dict[str, Source] = {}
    for split in SPLITS:
        parts = [file for file in files if re.match(rf"{split}\b", file.name)]
        if not parts:
            continue
        announced = {int(part[2]) for file in parts if (part := _PART.search(file.name))}
        if announced and announced != {len(parts)}:
            raise DataError(
                f"{folder} has {len(parts)} of the {max(announced)} {split}-*.parquet files that their names announce; "
                "copy all of them, from one version."
            )
        origins[split] = TableFiles(folder, parts)
    if not origins:
        raise DataError(
            f"{folder} has parquet files, such as {files[0].name}, but none of a split; "
            "expected names that start with train or test, such as train-00000-of-00001.parquet."
        )
    return origins


def _saved(path: Path) -> dict[str, Source]:
    """A folder that `save_to_disk` wrote: one split, or one folder per split."""
    if (path / "state.json").is_file():
        state = _json(path / "state.json")
        split = "test" if state.get("_split") == "test" or path.name == "test" else "train"
        return {split: _arrow(path, state)}
    splits = [split for split in SPLITS if (path / split / "state.json").is_file()]
    if not splits:
        raise DataError(f"{path} is a save_to_disk folder without a train or test split; save the data set again.")
    return {split: _arrow(path / split, _json(path / split / "state.json")) for split in splits}


def _arrow(folder: Path, state: dict[str, Any]) -> Source:
    try:
        # Only the last part of a name: the files must be in this folder, whatever the JSON says.
        files = [folder / Path(str(entry["filename"])).name for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / 'state.json'} names no data files; save the data set again.") from error
    if not files:
        raise DataError(f"{folder / 'state.json'} names no data files; save the data set again.")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder} was saved with an indices mapping, which orders its rows anew; save it again with datasets 2 or later."
        )
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder} lacks {missing[0]}, which its state.json names; copy the whole folder again.")
    return TableFiles(folder, files)


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("too long")
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is incomplete ({error}); copy the folder again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} was not written by save_to_disk; save the data set again.")
    return content
