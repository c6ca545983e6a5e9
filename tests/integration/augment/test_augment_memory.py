"""Augmenting a large batch takes little memory beyond the store, and no more after many epochs than after few."""

import json
import subprocess
import sys

import pytest
from processes import PROGRAMS


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_batch_of_2048_augments_within_a_gigabyte_and_nothing_grows_with_the_epochs() -> None:
    # In a process of its own, whose peak no earlier test has raised.
    done = subprocess.run([sys.executable, str(PROGRAMS / "augment_for_long.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The batch itself is 25 MB, as float32.
    assert 25e6 < found["large"] < 1e9
    # Keeping the 1,024 images of each of the 19 epochs between would be 60 MB as uint8, 240 MB as float32.
    assert found["late"] - found["early"] < 40e6
