"""Augment epoch after epoch, and say the memory that it takes, in bytes."""

import json
from pathlib import Path

import numpy as np
import torch

from cifar100_tk.augment import AutoAugment, Chain, Cutout, Flip, Mix, Normalize, RandomResizedCrop, finish


def memory(name: str) -> int:  # getrusage's peak would be that of the process that started this one
    return 1024 * int(next(line for line in Path("/proc/self/status").open() if line.startswith(name)).split()[1])


torch.set_num_threads(1)
store = np.random.default_rng(0).integers(0, 256, (8192, 3, 32, 32), np.uint8)
labels = torch.zeros(8192, dtype=torch.int64)
chain = Chain((RandomResizedCrop(), Flip(), AutoAugment(p=1.0)), 0)
mixer = Mix(mixup_alpha=0.2, cutmix_alpha=1.0).build(100, 0.1)


def augment(epoch: int, count: int) -> object:
    index = np.random.default_rng(epoch).permutation(len(store))[:count]
    images = chain.device(torch.from_numpy(store[index]), epoch, index)
    return mixer(finish(images, Normalize(), Cutout(p=1.0), 0, epoch, index), labels[index], 0, epoch)


augment(0, 16)
before = memory("VmHWM")
augment(1, 2048)
large = memory("VmHWM") - before
after = []
for epoch in range(2, 26):
    augment(epoch, 1024)
    after.append(memory("VmRSS"))
print(json.dumps({"large": large, "early": min(after[2:5]), "late": min(after[21:])}))
