"""A ResNet-18 on CIFAR-10 with crops, flips and Cutout: ten classes, 200 epochs.

Not yet measured. The paper on Cutout reports 96.01 +- 0.13 % top-1 on test for this network, batch, rate and number of epochs
(arXiv:1708.04552, table 1: last epoch, 5 seeds), with a learning rate that falls in three steps instead of along a cosine.

    accelerate launch --mixed_precision bf16 recipes/cifar10.py
"""

from cifar100_tk.augment import Cutout, Flip, Normalize, PadCrop
from cifar100_tk.data import Cifar10
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import SGD, CrossEntropy, WarmupCosine
from cifar100_tk.recipe import Recipe
from cifar100_tk.train import main

recipe = Recipe(
    data=Cifar10(source="hub"),
    model=TimmModel(name="resnet18_cifar"),
    augment=(
        PadCrop(padding=4),
        Flip(p=0.5),
    ),
    normalize=Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    cutout=Cutout(num_holes=1, size=16, p=1.0),
    mix=None,
    loss=CrossEntropy(smoothing=0.0),
    optimizer=SGD(lr=0.2, lr_batch_size=256, momentum=0.9, nesterov=True, weight_decay=5e-4),  # 0.1 at batch 128
    schedule=WarmupCosine(warmup_epochs=1, final_lr=1e-6),
    batch_size=128,
    epochs=200,
    seed=0,
)

if __name__ == "__main__":
    main(recipe)
