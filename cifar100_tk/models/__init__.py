"""What can be trained: our ResNets for 32x32 pictures and, by name, every other timm model that takes such pictures."""

from cifar100_tk.models.resnet_cifar import ResNetCifar
from cifar100_tk.models.timm_model import MAX_CLASSES, TimmModel, registered_by

__all__ = ["MAX_CLASSES", "ResNetCifar", "TimmModel", "registered_by"]
