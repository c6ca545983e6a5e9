"""Optimization: optimizers, SAM, learning-rate schedules, weight averaging, losses and distillation."""

from cifar100_tk.optim.ema import Ema
from cifar100_tk.optim.lookahead import Lookahead
from cifar100_tk.optim.loss import BinaryCrossEntropy, CrossEntropy, Distillation, Loss
from cifar100_tk.optim.optimizers import SGD, AdamW, Muon, Optimizer, load_named_state, named_state
from cifar100_tk.optim.sam import SAM
from cifar100_tk.optim.schedules import OneCycle, Schedule, Warmup, WarmupCosine, WarmupLinear

__all__ = [
    "SAM",
    "SGD",
    "AdamW",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Distillation",
    "Ema",
    "Lookahead",
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
