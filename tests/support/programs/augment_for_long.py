"""Augment a large batch under two limits of memory, then epoch after epoch, and say what fits and what is held, in bytes.

What is held is counted by the allocator. The resident size would tell of the memory that it keeps after it was freed, and of the
pages that the system has taken from a busy machine, which are others in each process.
"""

import ctypes
import json
import resource
from pathlib import Path

import numpy as np
import torch

from cifar100_tk.augment import AutoAugment, Chain, Cutout, Flip, Mix, Normalize, RandomResizedCrop, finish


class Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
torch.set_num_threads(1)
store = np.random.default_rng(0).integers(0, 256, (8192, 3, 32, 32), np.uint8)
labels = torch.zeros(8192, dtype=torch.int64)
chain = Chain((RandomResizedCrop(), Flip(), AutoAugment(p=1.0)), 0)
mixer = Mix(mixup_alpha=0.2, cutmix_alpha=1.0).build(100, 0.1)


def augment(epoch: int, count: int) -> object:
    index = np.random.default_rng(epoch).permutation(len(store))[:count]
    images = chain.device(torch.from_numpy(store[index]), epoch, index)
    return mixer(finish(images, Normalize(), Cutout(p=1.0), 0, epoch, index), labels[index], 0, epoch)


def fits(count: int, spare: int) -> bool:
    """Whether a batch can be made with so many more bytes of memory for data than the process has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (used,) = (1024 * int(line.split()[1]) for line in lines if line.startswith("VmData"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + spare, hard))
    try:
        augment(1, count)
    except (MemoryError, RuntimeError):
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    return True


def held() -> int:
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


augment(0, 16)
batch = 2048 * 3 * 32 * 32 * 4
found = {"in its own size": fits(2048, batch), "in a gigabyte": fits(2048, 10**9)}
after = []
for epoch in range(2, 26):
    augment(epoch, 1024)
    after.append(held())
print(json.dumps(found | {"grown": after[-1] - after[2]}))
