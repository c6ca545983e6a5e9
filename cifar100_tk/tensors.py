"""The shapes that flow through a training step, as jaxtyping aliases that signatures use and the test run checks."""

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Pictures = UInt8[Tensor, "batch 3 32 32"]
"""Raw pictures: (B, 3, 32, 32) uint8, RGB, 0..255."""

Images = Float[Tensor, "batch 3 side side"]
"""What the network sees: (B, 3, 32, 32) floating point, normalized; smaller in the early stages of progressive resizing."""

Labels = Int64[Tensor, " batch"]
"""Class numbers: (B,) int64 in 0..C-1."""

Targets = Float[Tensor, "batch classes"]
"""What the loss compares with: (B, C) probabilities, each row sums to 1."""

Logits = Float[Tensor, "batch classes"]
"""What the network says: (B, C) unnormalized log-probabilities."""
