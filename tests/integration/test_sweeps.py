"""The program in docs/sweeps.md is run as it stands, at a smaller size."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cifar100_tk.runs import listing
from cifar100_tk.runs.differences import differences

ROOT = Path(__file__).parents[2]
SMALLER = {
    "n_trials=20": "n_trials=2",
    "holdout=1000": "holdout=100, shapes100_rows=(1100, 100)",
    "epochs=2": "epochs=1, batch_size=500",
}


def test_the_sweep_in_the_documents_runs_and_resumes(tmp_path: Path) -> None:
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)
    for old, new in SMALLER.items():
        assert old in program
        program = program.replace(old, new)
    (tmp_path / "sweep.py").write_text(program)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    done = subprocess.run([sys.executable, "sweep.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "'weight_decay':" in done.stdout
    trials = listing.find([tmp_path / "runs"])
    assert [run.name for run in trials] == ["trial-0", "trial-1"] and all(run.finished for run in trials)
    assert differences([run.recipe for run in trials]).keys() == {"optimizer"}
