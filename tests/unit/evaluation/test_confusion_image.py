"""The confusion matrix is drawn by super-class, with the counts of the evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cifar100_tk.evaluation.confusion_image import LABELS, RIGHT, SIDE, TOP, WRONG, Confusion, draw


def result(*superclasses: str | None) -> dict[str, Any]:
    classes = [{"name": f"class_{number}", "superclass": name} for number, name in enumerate(superclasses)]
    return {"classes": classes, "confusion": [[1, 0, 3, 0], [0, 5, 0, 5], [0, 0, 0, 0], [1, 1, 1, 1]]}


def test_classes_are_in_the_order_of_their_super_classes() -> None:
    found = Confusion.of(result("pets", "cars", "pets", "cars"))
    assert found.blocks == (("cars", 0, 2), ("pets", 2, 2))
    assert found.names == ("class 1", "class 3", "class 0", "class 2")
    # A class without images has no shares.
    assert found.shares.tolist() == [[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25], [0, 0, 0.25, 0.75], [0, 0, 0, 0]]
    assert found.worst == 0.75


def test_without_super_classes_each_class_is_its_own() -> None:
    found = Confusion.of(result(None, None, None, None))
    assert found.names == ("class 0", "class 1", "class 2", "class 3")
    assert found.blocks == tuple((name, row, 1) for row, name in enumerate(found.names))


def test_a_cell_is_the_stronger_the_more_images_it_holds() -> None:
    cells = np.asarray(Confusion.of(result("pets", "cars", "pets", "cars")).cells())
    assert cells[0, 0].tolist() == [*RIGHT, 128] and cells[2, 3].tolist() == [*WRONG, 255]
    assert cells[0, 2, 3] == 0 < cells[1, 0, 3] < cells[0, 1, 3] < 255


@pytest.mark.parametrize("name", ["pets", "so long a name of a super-class " * 3, "two\nlines"])
def test_the_image_shows_the_cells_in_their_place(name: str) -> None:
    image = np.asarray(draw(Confusion.of(result(name, "cars", name, "cars"))))
    cell = SIDE // 4
    # Class 0 taken for class 2, in three images of four.
    corner = (TOP + 2 * cell + cell // 2, LABELS + 3 * cell + cell // 2)
    assert image[corner].tolist() == list(WRONG) and (image[:, : LABELS - 1] < 100).any()
