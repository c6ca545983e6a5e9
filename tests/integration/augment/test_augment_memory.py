"""Augmenting a large batch takes little memory beyond the store, and no more after many epochs than after few."""

import json
import subprocess
import sys

import pytest
from processes import PROGRAMS


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and asks glibc")
def test_a_batch_of_2048_augments_within_a_gigabyte_and_nothing_grows_with_the_epochs() -> None:
    done = subprocess.run([sys.executable, str(PROGRAMS / "augment_for_long.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The first of these shows that the limit is one.
    assert (found["in its own size"], found["in a gigabyte"]) == (False, True)
    # Keeping the 1,024 images of each of the 21 epochs between would be 66 MB as uint8, 264 MB as float32.
    assert found["grown"] < 10e6
