"""Augmentation: a chain of components from uint8 pictures to what the network sees, on the host or on the device."""

from cifar100_tk.augment.auto import RAND_OPS, AutoAugment, OpPolicy, RandAugment, TrivialAugmentWide
from cifar100_tk.augment.base import Augmentation, BatchedAugmentation, PackedAugmentation, Plan, Row
from cifar100_tk.augment.chain import Chain
from cifar100_tk.augment.crop import Crop, PadCrop
from cifar100_tk.augment.finish import Cutout, Normalize, cutout_controls, finish, finish_drawn
from cifar100_tk.augment.flip import Flip
from cifar100_tk.augment.mix import Mix, Mixer, soft_targets
from cifar100_tk.augment.ops import OPS, Blend, Filters, FixedTable, Moves, Op, Recodes
from cifar100_tk.augment.progressive import ProgressiveResize, resize_images
from cifar100_tk.augment.timm_policy import TimmPolicy
from cifar100_tk.augment.transfer import send, to_device

__all__ = [
    "OPS",
    "RAND_OPS",
    "Augmentation",
    "AutoAugment",
    "BatchedAugmentation",
    "Blend",
    "Chain",
    "Crop",
    "Cutout",
    "Filters",
    "FixedTable",
    "Flip",
    "Mix",
    "Mixer",
    "Moves",
    "Normalize",
    "Op",
    "OpPolicy",
    "PackedAugmentation",
    "PadCrop",
    "Plan",
    "ProgressiveResize",
    "RandAugment",
    "Recodes",
    "Row",
    "TimmPolicy",
    "TrivialAugmentWide",
    "cutout_controls",
    "finish",
    "finish_drawn",
    "resize_images",
    "send",
    "soft_targets",
    "to_device",
]
