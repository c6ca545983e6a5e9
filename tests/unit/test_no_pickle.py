"""Nothing of the package unpickles a file: planted ones leave no trace, wherever they stand."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from canary import Canary, unpickled
from runs import SHAPES, Bell, newest, ring_at, run, status, tiny

import cifar100_tk
from cifar100_tk.augment import Flip, RandomResizedCrop
from cifar100_tk.data import Cifar100
from cifar100_tk.errors import DataError, StoppedError
from cifar100_tk.evaluation import files as evaluation_files
from cifar100_tk.runs import checkpoint
from cifar100_tk.storage import atomic
from cifar100_tk.storage.atomic import sha256

SOURCES = sorted(Path(cifar100_tk.__file__).parent.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    *("torch.load", "torch.jit.load", "load_state", "register_for_checkpointing", "load_checkpoint"),
    *("load_checkpoint_in_model", "load_checkpoint_and_dispatch", "builtins.eval", "builtins.exec"),
}
NAMES = [
    *(
        "optimizer.bin",
        "random_states_0.pkl",
        "model.bin",
        "pytorch_model.bin",
        "model.pt",
        "model.pth",
        "scheduler.bin",
    ),
    *("sampler.bin", "custom_checkpoint_0.pkl", "scaler.pt", "optimizer.pt", "training_args.bin", "step-99999999"),
]


def forbidden(source: str) -> set[str]:
    """Return the imports and calls in a source text that could load a pickle."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES | {"yaml"}:
            found.add(str(node.module))
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if re.fullmatch(r"yaml\.\w+", name) and name not in ("yaml.safe_load", "yaml.safe_dump"):
                found.add(name)
            if FORBIDDEN_CALLS & {name, name.rpartition(".")[2], f"builtins.{name}"}:
                found.add(name)
            pickles = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("allow_pickle")
            if pickles != "False" and (pickles or name in ("np.load", "numpy.load")):
                found.add(name)
    return found


def test_the_scan_finds_what_it_looks_for() -> None:
    text = "import pickle\nfrom yaml import load\ntorch.load(f)\naccelerator.load_state()\nyaml.load(f, L)"
    fine = "\nx.load_state_dict({})\njson.load(f)\nmodel.eval()\nnp.load(f, allow_pickle=False)\nimport yaml\nyaml.safe_load(f)"
    assert forbidden(fine) == set()
    found = {"pickle", "yaml", "yaml.load", "torch.load", "accelerator.load_state", "eval", "np.load"}
    assert forbidden(f"{text}\neval('1')\nnp.load(f)" + fine) == found


def test_no_source_of_the_package_can_load_a_pickle() -> None:
    assert len(SOURCES) > 40
    assert {str(path): names for path in SOURCES if (names := forbidden(path.read_text()))} == {}


def plant(folder: Path, trace: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / name).write_bytes(pickle.dumps(Canary(trace)))
    torch.save(Canary(trace), folder / "weights.pt")


def test_a_planted_pickle_does_work_where_it_is_loaded(tmp_path: Path) -> None:
    plant(tmp_path / "folder", tmp_path / "trace")
    with unpickled() as heard:
        pickle.loads((tmp_path / "folder" / "optimizer.bin").read_bytes())
    assert heard == [("posix", "mkdir")] and (tmp_path / "trace").exists()


@pytest.mark.usefixtures("on_cpu")
def test_planted_pickles_leave_no_trace(tmp_path: Path) -> None:
    path, trace = tmp_path / "run", tmp_path / "trace"
    recipe = tiny(augment=(RandomResizedCrop(), Flip(), Bell()), epochs=1)
    ring_at[:] = [2]
    with pytest.raises(StoppedError):
        run(path, recipe)
    (step,) = (path / "checkpoints").iterdir()
    for folder in (path, path / "checkpoints", step, path / "tensorboard", path / "checkpoints" / "step-00000004"):
        plant(folder, trace)
    with unpickled() as heard:
        run(path, recipe)
        for name in ("model", "evaluation"):
            plant(path / name, trace)
        evaluation_files.read(path / "evaluation", "test")
        cifar100_tk.load(path)
        cifar100_tk.load(path / "model")
        checkpoint.survey(path / "checkpoints")
        (path / "model" / "model.safetensors").write_bytes(pickle.dumps(Canary(trace)))
        with pytest.raises(DataError, match=r"model.safetensors is not a valid safetensors file"):
            cifar100_tk.load(path)
        for name in ("optimizer.bin", "random_states_0.pkl", "weights.pt"):
            with pytest.raises(DataError, match="is a pickle, and loading a pickle runs any code in it"):
                cifar100_tk.load(path / name)
        shutil.rmtree(path / "model")
        plant(path / "model", trace)
        with pytest.raises(DataError, match="is a pickle, and pickles are never loaded"):
            cifar100_tk.load(path / "model")
    assert status(path)["status"] == "finished" and newest(path).step == 5
    assert heard == [] and not trace.exists()


def test_planted_pickles_in_the_cache_in_the_data_and_in_a_sealed_checkpoint_leave_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, cache, data = tmp_path / "trace", tmp_path / "cache", tmp_path / "data"
    monkeypatch.setenv("CIFAR100_TK_CACHE", str(cache))
    before = SHAPES.open("test")
    files = sorted(cache.rglob("*.npy"))
    assert [file.name for file in files] == ["by_content.npy", "images.npy", "labels.npy"]
    content = {"model.safetensors": pickle.dumps(Canary(trace))}
    entry = {name: {"sha256": hashlib.sha256(one).hexdigest(), "bytes": len(one)} for name, one in content.items()}
    sealed = checkpoint._sealed({"format": 1, "step": 7, "files": entry, "facts": {}})
    atomic.write_folder(tmp_path / "checkpoints" / "step-00000007", content | {checkpoint.MANIFEST: sealed})
    with unpickled() as heard:
        for file in files:
            # As numpy writes Python objects: a header, and a pickle. Its digest is in place too.
            np.save(file, np.array([Canary(trace)], object), allow_pickle=True)
            meta = json.loads((file.parent / "meta.json").read_text())
            meta["sha256"][file.stem], meta["images_bytes"] = sha256(file), files[-1].stat().st_size
            (file.parent / "meta.json").write_text(json.dumps(meta))
            assert SHAPES.open("test").identity == before.identity
        for name in ("train", "test", "meta", "train.parquet", "train.bin", "data.pkl", "cifar-100-python"):
            data.mkdir()
            (data / name).write_bytes(pickle.dumps(Canary(trace)))
            with pytest.raises(DataError, match=str(data)):
                Cifar100(source=str(data)).open("train")
            shutil.rmtree(data)
        with pytest.raises(DataError, match=r"step-00000007/model.safetensors cannot be read as safetensors"):
            checkpoint.read(tmp_path / "checkpoints" / "step-00000007")
    assert heard == [] and not trace.exists()
