"""An ImageNet backbone fine-tuned on CIFAR-100: a pretrained ResNet-18, images enlarged to 224x224, 10 epochs.

Not yet measured. The weights are timm's `resnet18.a1_in1k` (arXiv:2110.00476, Apache-2.0), fetched from the Hub once; a folder or
a safetensors file in their place, such as a run of your own: --model.pretrained runs/cifar10

    accelerate launch recipes/finetune.py

The classifier is new and learns alone in the first epoch; then the backbone follows at a fifth of its learning rate.
"""

from cifar100_tk.augment import Flip, Normalize, RandomResizedCrop
from cifar100_tk.data import Cifar100
from cifar100_tk.models import FineTune, TimmModel
from cifar100_tk.optim import SGD, CrossEntropy, WarmupCosine
from cifar100_tk.recipe import Recipe
from cifar100_tk.train import main

recipe = Recipe(
    data=Cifar100(source="hub"),
    model=TimmModel(name="resnet18", pretrained="resnet18.a1_in1k"),
    finetune=FineTune(freeze=(), freeze_epochs=1, backbone_lr_scale=0.2, layer_decay=1.0),
    augment=(
        RandomResizedCrop(scale=(0.6, 1.0), ratio=(0.9, 1.1)),
        Flip(p=0.5),
    ),
    normalize=Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),  # ImageNet's, as the weights expect.
    image_size=224,
    loss=CrossEntropy(smoothing=0.1, smooth_over="all"),
    optimizer=SGD(lr=0.05, lr_batch_size=256, momentum=0.9, nesterov=True, weight_decay=5e-4),
    schedule=WarmupCosine(warmup_epochs=1, final_lr=1e-6),
    batch_size=256,
    epochs=10,
    seed=0,
)

if __name__ == "__main__":
    main(recipe)
