"""The notebook in the documents runs as it stands, on fewer images, and what is checked in has the outputs of such a run."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
SMALLER = "recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, shapes100_rows=(1280, 200)))"


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [defines] = [cell for cell in notebook.cells if cell.cell_type == "code" and "recipe = dataclasses" in cell.source]
    defines.source = defines.source.rpartition("\n")[0] + f"\n{SMALLER}"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert any("epoch 2/2" in output.get("text", "") for output in outputs)


def test_the_outputs_that_are_checked_in_are_of_a_whole_run() -> None:
    nbformat = pytest.importorskip("nbformat")
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)) and len(cells) > 8
    text = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "epoch 2/2" in text and "12,800 train" in text and "Error" not in text and "Warning" not in text
