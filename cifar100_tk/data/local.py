"""Detects the kind of a local copy and finds its splits without opening an image."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Final

from cifar100_tk.data.binary import BinaryFiles, TarMembers, tar_splits
from cifar100_tk.data.digests import reading
from cifar100_tk.data.published import CIFAR10, CIFAR100, Published
from cifar100_tk.data.rows import SPLITS, Source
from cifar100_tk.data.table import TableFiles
from cifar100_tk.errors import DataError

_PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npz", ".joblib")
_MAX_JSON_BYTES: Final = 10_000_000
_PART: Final = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


def local_origins(source: str, published: Published) -> dict[str, Source]:
    """Find the splits of a local copy, at least one of train and test. Raises DataError for anything else."""
    path = Path(source).expanduser()
    with reading(path):
        there = path.exists()
    if not there:
        words = ["hub", "shapes100"] if published.names.coarse else ["hub"]
        denied = "neither hub nor shapes100" if published.names.coarse else "not hub"
        near = "" if os.sep in source else f" It is {denied}, so it was treated as a path."
        raise DataError(
            f"source={source!r} does not exist.{near} Expected {', '.join(words)}, or the path of {_kinds(published)}."
        )
    with reading(path):
        return _file(path, published) if path.is_file() else _folder(path, published)


def _kinds(published: Published) -> str:
    folder = published.folder
    return (
        f"a folder of parquet files in the Hub's layout ({folder}/train-*.parquet, {folder}/test-*.parquet), one parquet "
        f"file, a save_to_disk folder, or the official {published.binary_folder} folder or tar.gz"
    )


def _file(path: Path, published: Published) -> dict[str, Source]:
    name = path.name
    if name.endswith((".tar.gz", ".tgz", ".tar")):
        return {split: TarMembers(path, split, published) for split in tar_splits(path, published)}
    if name.endswith(".parquet"):
        split = "test" if name.startswith("test") else "train"
        return {split: TableFiles(path, [path], published)}
    if path.suffix == ".bin" and any(path.stem in names for names in published.binary.values()):
        raise DataError(
            f"{path} is one file of the official {published.binary_folder} folder; give the folder: {path.parent}."
        )
    if name.endswith(_PICKLES):
        raise DataError(_refusal(path, published))
    raise DataError(f"{path} is not a supported data file. Expected {_kinds(published)}.")


def _folder(path: Path, published: Published) -> dict[str, Source]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved(path, published)
    for folder in (path / published.folder, path / "data", path):
        if files := sorted(folder.glob("*.parquet")):
            return _parquet(folder, files, published)
    wanted = {split: [path / f"{name}.bin" for name in names] for split, names in published.binary.items()}
    if found := {split: files for split, files in wanted.items() if all(file.is_file() for file in files)}:
        return {split: BinaryFiles(files, published) for split, files in found.items()}
    lacking = [file.name for files in wanted.values() for file in files if not file.is_file()]
    if len(lacking) < sum(map(len, wanted.values())):
        raise DataError(f"{path} lacks {lacking[0]}; copy the whole {published.binary_folder} folder again.")
    for other in (CIFAR100, CIFAR10):
        if other is not published and any((path / f"{name}.bin").is_file() for name in other.binary["train"]):
            raise DataError(
                f"{path} contains the files of {other.name}, not of {published.name}; use a recipe for {other.name}."
            )
    if (path / "meta").is_file() and ((path / "train").is_file() or (path / "test").is_file()):
        raise DataError(_refusal(path, published))
    if (path / "batches.meta").is_file() and (path / "data_batch_1").is_file():
        raise DataError(_refusal(path, published))
    if (path / published.binary_folder).is_dir():
        raise DataError(f"{path} is not the data itself; give the folder inside it: {path / published.binary_folder}.")
    if (path / published.python_folder).is_dir():
        raise DataError(_refusal(path / published.python_folder, published))
    if pickles := sorted(file for file in path.iterdir() if file.name.endswith(_PICKLES)):
        raise DataError(_refusal(pickles[0], published))
    some = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    raise DataError(f"{path} contains no supported data; it contains {some}. Expected {_kinds(published)}.")


def _refusal(path: Path, published: Published) -> str:
    return (
        f"{path} is a pickle, and loading a pickle can run any code. Use the {published.archive} files "
        f"(https://www.cs.toronto.edu/~kriz/{published.archive}.tar.gz) or parquet ({published.preparing})."
    )


def _parquet(folder: Path, files: list[Path], published: Published) -> dict[str, Source]:
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
        origins[split] = TableFiles(folder, parts, published)
    if not origins:
        raise DataError(
            f"{folder} has parquet files, such as {files[0].name}, but none of a split; "
            "expected names that start with train or test, such as train-00000-of-00001.parquet."
        )
    return origins


def _saved(path: Path, published: Published) -> dict[str, Source]:
    """A folder that `save_to_disk` wrote: one split, or one folder per split."""
    if (path / "state.json").is_file():
        state = _json(path / "state.json")
        split = "test" if state.get("_split") == "test" or path.name == "test" else "train"
        return {split: _arrow(path, state, published)}
    splits = [split for split in SPLITS if (path / split / "state.json").is_file()]
    if not splits:
        raise DataError(f"{path} is a save_to_disk folder without a train or test split; save the data set again.")
    return {split: _arrow(path / split, _json(path / split / "state.json"), published) for split in splits}


def _arrow(folder: Path, state: dict[str, Any], published: Published) -> Source:
    try:
        # Only the last part of a name: the files must be in this folder, whatever the JSON says.
        files = [folder / Path(str(entry["filename"])).name for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / 'state.json'} names no data files; save the data set again.") from error
    if not files:
        raise DataError(f"{folder / 'state.json'} names no data files; save the data set again.")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder} was saved with an indices mapping, which reorders its rows; save it again with datasets 2 or later."
        )
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder} lacks {missing[0]}, which its state.json names; copy the whole folder again.")
    return TableFiles(folder, files, published)


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
