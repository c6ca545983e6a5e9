"""Run folders as files alone, of runs that never ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECIPE: dict[str, Any] = {
    "type": "Recipe",
    "data": {"type": "Cifar100", "source": "shapes100", "holdout": 0},
    "optimizer": {"type": "SGD", "lr": 0.1},
    "ema": None,
    "seed": 0,
}


def folder(path: Path, top1: float = 0.5, status: str = "finished", **changes: Any) -> Path:
    """Write a run folder of two epochs; the second is measured."""
    path.mkdir(parents=True)
    (path / "recipe.json").write_text(json.dumps(RECIPE | changes))
    measured = {"test/top1": top1, "test/top5": 0.75, "test/loss": 2.0}
    lines = [{"epoch": 1, "step": 5, "train/loss": 4.0}, {"epoch": 2, "step": 10, "train/loss": 3.0} | measured]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (path / "run_status.json").write_text(json.dumps({"status": status, "seconds": 99.0}))
    environment = {"device": "cpu (2 threads)", "precision": "float32", "num_processes": 1, "torch": "2.15.0"}
    (path / "environment.json").write_text(json.dumps(environment))
    return path
