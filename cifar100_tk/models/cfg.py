"""timm's configuration of a network for 32x32 images; imports nothing, because timm's import leads back to the networks."""

from __future__ import annotations

from typing import Any


def cifar_cfg(description: str, **others: Any) -> dict[str, Any]:
    """Return timm's configuration of a network for 32x32 images. others: entries that differ from a ResNet's."""
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.5071, 0.4867, 0.4408),
        "std": (0.2675, 0.2565, 0.2761),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "description": description,
        **others,
    }
