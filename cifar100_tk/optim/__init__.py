"""Optimization: optimizers, SAM, learning-rate schedules, weight averaging and the loss."""

from cifar100_tk.optim.ema import Ema
from cifar100_tk.optim.lookahead import Lookahead
from cifar100_tk.optim.loss import CrossEntropy
from cifar100_tk.optim.optimizers import SGD, AdamW, Muon, Optimizer, load_named_state, named_state
from cifar100_tk.optim.sam import SAM
from cifar100_tk.optim.schedules import OneCycle, Schedule, Warmup, WarmupCosine, WarmupLinear

__all__ = [
    "SAM",
    "SGD",
    "AdamW",
    "CrossEntropy",
    "Ema",
    "Lookahead",
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
