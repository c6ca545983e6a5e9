"""ResNet-50 from scratch, 200 epochs at batch 2048: the reference recipe.

Aim: 81.45 % top-1 and 95.70 % top-5 on test, which a published run of this recipe reports (one seed, best on test,
2,808 s on one A100 PCIe, fp16). Not yet measured with this toolkit.

    accelerate launch recipes/resnet50.py
"""

from cifar100_tk.augment import AutoAugment, Cutout, Flip, Mix, Normalize, RandomResizedCrop
from cifar100_tk.data import Cifar100
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import SGD, CrossEntropy, WarmupCosine
from cifar100_tk.recipe import Recipe
from cifar100_tk.train import main

recipe = Recipe(
    data=Cifar100(source="hub"),
    model=TimmModel(name="resnet50_cifar"),
    augment=(
        RandomResizedCrop(scale=(0.8, 1.0), ratio=(0.9, 1.1)),
        Flip(p=0.5),
        AutoAugment(policy="cifar10", p=0.7),
    ),
    normalize=Normalize(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
    cutout=Cutout(num_holes=1, size=16, p=0.5),
    mix=Mix(mixup_alpha=0.2, cutmix_alpha=0.0),
    loss=CrossEntropy(smoothing=0.1, smooth_over="others"),
    optimizer=SGD(lr=0.1, lr_batch_size=256, momentum=0.9, nesterov=True, weight_decay=5e-4),  # 0.8 at batch 2048
    schedule=WarmupCosine(warmup_epochs=10, final_lr=1e-6),
    batch_size=2048,
    epochs=200,
    seed=0,
)

if __name__ == "__main__":
    main(recipe)
