"""CIFAR-100 training, evaluation and sharing, on Hugging Face Accelerate and timm."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from cifar100_tk.cli.recipes import load_recipe as load_recipe
    from cifar100_tk.models.folder import load as load

__version__ = "0.1.0.dev0"


# `timm.create_model("resnet50_cifar")` must work after `import cifar100_tk`, yet importing timm takes seconds that
# `--help` should not cost. So our architectures register themselves at the moment when timm.models has been imported:
# now, if it already is, else right after somebody imports it.
@when_imported("timm.models")
def _register_architectures(timm_models: ModuleType) -> None:
    importlib.import_module("cifar100_tk.models.resnet_cifar")
    importlib.import_module("cifar100_tk.models.speednet")


_OFFERED = {"load": "cifar100_tk.models.folder", "load_recipe": "cifar100_tk.cli.recipes"}
"""Functions by the modules that hold them, which are imported on first use (PEP 562), because they need torch and timm."""


def __dir__() -> list[str]:
    return sorted([*globals(), *_OFFERED])


def __getattr__(name: str) -> Any:
    if name in _OFFERED:
        return getattr(importlib.import_module(_OFFERED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
