"""Augmentation: a chain of components from uint8 images to what the network sees, on the host or on the device."""

from cifar100_tk.augment.auto import RAND_OPS, AutoAugment, OpPolicy, RandAugment, TrivialAugmentWide
from cifar100_tk.augment.base import (
    MAX_SIDE,
    SIDE,
    Augmentation,
    AugmentPlan,
    BatchedAugmentation,
    PackedAugmentation,
    Row,
)
from cifar100_tk.augment.chain import Chain
from cifar100_tk.augment.crop import PadCrop, RandomResizedCrop
from cifar100_tk.augment.finish import Cutout, Normalize, cutout_controls, finish, finish_drawn
from cifar100_tk.augment.flip import Flip
from cifar100_tk.augment.mix import Mix, Mixer, soft_targets
from cifar100_tk.augment.ops import OPS, Affine, Blend, Filter, FixedTable, LookupTable, Op
from cifar100_tk.augment.progressive import ProgressiveResize, resize_images
from cifar100_tk.augment.timm_policy import TimmPolicy

__all__ = [
    "MAX_SIDE",
    "OPS",
    "RAND_OPS",
    "SIDE",
    "Affine",
    "AugmentPlan",
    "Augmentation",
    "AutoAugment",
    "BatchedAugmentation",
    "Blend",
    "Chain",
    "Cutout",
    "Filter",
    "FixedTable",
    "Flip",
    "LookupTable",
    "Mix",
    "Mixer",
    "Normalize",
    "Op",
    "OpPolicy",
    "PackedAugmentation",
    "PadCrop",
    "ProgressiveResize",
    "RandAugment",
    "RandomResizedCrop",
    "Row",
    "TimmPolicy",
    "TrivialAugmentWide",
    "cutout_controls",
    "finish",
    "finish_drawn",
    "resize_images",
    "soft_targets",
]
