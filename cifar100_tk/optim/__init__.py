"""Optimization: optimizers, learning-rate schedules, weight averaging, losses and distillation."""

from cifar100_tk.optim.ema import Ema
from cifar100_tk.optim.loss import BinaryCrossEntropy, CrossEntropy, Distillation, Loss
from cifar100_tk.optim.optimizers import SGD, AdamW, Muon, Optimizer, load_named_state, named_state
from cifar100_tk.optim.schedules import OneCycle, Schedule, Warmup, WarmupCosine, WarmupLinear

__all__ = [
    "SGD",
    "AdamW",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Distillation",
    "Ema",
    "Loss",
    "Muon",
    "OneCycle",
    "Optimizer",
    "Schedule",
    "Warmup",
    "WarmupCosine",
    "WarmupLinear",
    "load_named_state",
    "named_state",
]
