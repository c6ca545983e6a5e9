"""Augmenting a large batch takes little memory beyond the store, and no more after many epochs than after few."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own, whose peak no earlier test has raised.
PROGRAM = """
import json
from pathlib import Path

import numpy as np
import torch

from cifar100_tk.augment import AutoAugment, Chain, RandomResizedCrop, Cutout, Flip, Mix, Normalize, finish

def memory(name):  # in bytes; getrusage's peak would be that of the process that started this one
    return 1024 * int(next(l for l in Path("/proc/self/status").open() if l.startswith(name)).split()[1])

torch.set_num_threads(1)
store = np.random.default_rng(0).integers(0, 256, (8192, 3, 32, 32), np.uint8)
labels = torch.zeros(8192, dtype=torch.int64)
chain = Chain((RandomResizedCrop(), Flip(), AutoAugment(p=1.0)), 0)
mixer = Mix(mixup_alpha=0.2, cutmix_alpha=1.0).build(100, 0.1)

def augment(epoch, count):
    index = np.random.default_rng(epoch).permutation(len(store))[:count]
    images = chain.device(torch.from_numpy(store[index]), epoch, index)
    return mixer(finish(images, Normalize(), Cutout(p=1.0), 0, epoch, index), labels[index], 0, epoch)

augment(0, 16)
before = memory("VmHWM")
augment(1, 2048)
large = memory("VmHWM") - before
after = []
for epoch in range(2, 14):
    augment(epoch, 1024)
    after.append(memory("VmRSS"))
print(json.dumps({"large": large, "after 3": after[2], "after 12": after[11]}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_batch_of_2048_augments_within_a_gigabyte_and_nothing_grows_with_the_epochs() -> None:
    here = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=here, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The batch itself is 25 MB, as float32.
    assert 25e6 < found["large"] < 1e9
    # Keeping one batch of 1,024 images an epoch would be 28 MB as uint8, 113 MB as float32.
    assert found["after 12"] - found["after 3"] < 15e6
