"""Networks to train: ResNets for 32x32 images, a small fast network, and any timm model, with random or pretrained weights."""

from cifar100_tk.models.finetune import FineTune
from cifar100_tk.models.resnet_cifar import ResNetCifar
from cifar100_tk.models.speednet import SpeedNet
from cifar100_tk.models.timm_model import MAX_CLASSES, TimmModel, registered_by
from cifar100_tk.models.whitening import Whitening

__all__ = ["MAX_CLASSES", "FineTune", "ResNetCifar", "SpeedNet", "TimmModel", "Whitening", "registered_by"]
