"""Every part of the real recipe at a size for a laptop: shapes100, 100 classes of built-in images, nothing downloaded.

84.42 +- 1.23 % top-1 and 99.61 +- 0.23 % top-5 on test, where chance is 1 and 5 % (last epoch, 5 seeds, mean and sample
standard deviation, one CPU thread, float32, torch 2.15). Seed 0 took 1 min 19 s on two quiet CPU cores.

    accelerate launch recipes/quickstart.py
"""

from cifar100_tk.augment import AutoAugment, Cutout, Flip, Mix, Normalize, RandomResizedCrop
from cifar100_tk.data import Cifar100
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import SGD, CrossEntropy, WarmupCosine
from cifar100_tk.recipe import Band, Recipe
from cifar100_tk.train import main

recipe = Recipe(
    data=Cifar100(source="shapes100", shapes100_rows=(12_800, 2_000)),
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
    optimizer=SGD(lr=1.6, lr_batch_size=256, momentum=0.9, nesterov=True, weight_decay=5e-4),  # 0.4 at batch 64
    schedule=WarmupCosine(warmup_epochs=1, final_lr=1e-6),
    batch_size=64,
    epochs=6,
    seed=0,
    # Mean +- 4 standard deviations: 59.36 +- 3.40 and 77.38 +- 2.27 % of seeds 0 to 3, 84.42 +- 1.23 % of all 5.
    reference=(
        Band(epoch=4, top1=(0.457, 0.730)),
        Band(epoch=5, top1=(0.683, 0.865)),
        Band(epoch=6, top1=(0.795, 0.894)),
    ),
)

if __name__ == "__main__":
    main(recipe)
