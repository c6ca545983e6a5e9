"""Augmenting a large batch takes little memory beyond the store, and no more after many epochs than after few."""

import json
import subprocess
import sys

import pytest
from processes import PROGRAMS

# In a process of its own, whose peak no earlier test has raised.


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_batch_of_2048_augments_within_a_gigabyte_and_nothing_grows_with_the_epochs() -> None:
    done = subprocess.run([sys.executable, str(PROGRAMS / "augment_for_long.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The batch itself is 25 MB, as float32.
    assert 25e6 < found["large"] < 1e9
    # Keeping one batch of 1,024 images an epoch would be 28 MB as uint8, 113 MB as float32.
    assert found["after 12"] - found["after 3"] < 15e6
