"""A first CIFAR-100 classifier on a laptop: a ResNet-10 of width 16, 320,436 parameters, 12 epochs.

52.42 % top-1 and 81.94 % top-5 on 5,000 held-out images of train (last epoch, one seed, 15 min 14 s on one CPU core,
bf16, torch 2.15). Not measured on test. Two cores took 8 min 35 s, and their sums, rounded otherwise, led to 52.58 %.

    accelerate launch --mixed_precision bf16 recipes/resnet10.py --data.holdout 5000

bf16 is for processors that have it in hardware (avx512_bf16 or amx_bf16 in /proc/cpuinfo); elsewhere `no` is quicker.
"""

from cifar100_tk.augment import AutoAugment, Cutout, Flip, Mix, Normalize, RandomResizedCrop
from cifar100_tk.data import Cifar100
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import SGD, CrossEntropy, WarmupCosine
from cifar100_tk.recipe import Recipe
from cifar100_tk.train import main

recipe = Recipe(
    data=Cifar100(source="hub"),
    model=TimmModel(name="resnet10_cifar_w16"),
    augment=(
        RandomResizedCrop(scale=(0.8, 1.0), ratio=(0.9, 1.1)),
        Flip(p=0.5),
        AutoAugment(policy="cifar10", p=0.1),
    ),
    normalize=Normalize(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
    cutout=Cutout(num_holes=1, size=8, p=0.1),
    mix=Mix(mixup_alpha=0.2, cutmix_alpha=0.0),
    loss=CrossEntropy(smoothing=0.1, smooth_over="others"),
    optimizer=SGD(lr=0.4, lr_batch_size=256, momentum=0.9, nesterov=True, weight_decay=5e-4),  # 0.2 at batch 128
    schedule=WarmupCosine(warmup_epochs=1, final_lr=1e-6),
    batch_size=128,
    epochs=12,
    seed=0,
)

if __name__ == "__main__":
    main(recipe)
