"""The model part of a recipe: any timm model, from this package or from timm."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from timm.models import create_model, is_model, list_models, model_entrypoint
from torch import nn

from cifar100_tk.augment import SIDE
from cifar100_tk.errors import ConfigError

MAX_CLASSES = 100_000
"""More classes are a mistake or an attack: configs come from untrusted sources, and a huge head exhausts the memory."""


_WRITTEN = ("pretrained_cfg", "num_classes", "num_features")
"""Attributes that every timm model has; checked before training rather than missed after it."""


@final
@dataclass(frozen=True, kw_only=True)
class TimmModel:
    """A network given by its timm name, for square RGB images, with random or pretrained weights."""

    name: str = "resnet50_cifar"
    """Any name in `timm.list_models()`; this package's end in `_cifar`, and `resnet10_cifar_w16` is fast on a CPU."""

    pretrained: str | None = None
    """Weights to start from: a timm tag such as `resnet18.a1_in1k`, a Hub id USER/NAME, a run or model folder, or a .safetensors
    file; None for random weights. A stem or a head that does not fit starts from random weights."""

    drop_rate: float = 0.0
    """Probability of dropping a feature before the classifier; 0 turns dropout off."""

    drop_path_rate: float = 0.0
    """Probability of skipping the last residual branch, lower for earlier branches (arXiv:1603.09382); 0 turns it off."""

    grad_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory for about a third more time."""

    def build(self, num_classes: int, image_size: int = SIDE) -> nn.Module:
        """Build the network in training mode on the CPU, with weights drawn from torch's global generator.

        num_classes: 1..MAX_CLASSES. Returns a module that maps (B, 3, S, S) floats to (B, num_classes) logits, with S =
        image_size. `load_pretrained` then replaces the weights. Raises ConfigError for a name unknown to timm, an option that
        the model lacks, and a model unfit for images of that size.
        """
        self._check(num_classes)
        rates = {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path_rate}
        # Not every model takes a rate, so a rate that is off is not passed.
        arguments = {"num_classes": num_classes} | {field: rate for field, rate in rates.items() if rate}
        rng_state = torch.get_rng_state()
        model = _create(self.name, arguments)
        if problem := _problem_with_images(model, num_classes, image_size):
            # A model built for one image size, as most transformers are, can often be built for another.
            torch.set_rng_state(rng_state)
            model = _create_for_size(self.name, arguments, image_size, problem)
        if missing := [name for name in _WRITTEN if not hasattr(model, name)]:
            raise ConfigError(
                f"model.name={self.name!r} lacks {' and '.join(missing)}, which config.json is written from; build it "
                "with timm.models.build_model_with_cfg, and set num_classes and num_features in its class."
            )
        if self.grad_checkpointing:
            _checkpoint(model, self.name)
        return model

    def _check(self, num_classes: int) -> None:
        if not 1 <= num_classes <= MAX_CLASSES:
            raise ConfigError(f"num_classes={num_classes} is out of range; use 1 to {MAX_CLASSES}.")
        for field, rate in (("drop_rate", self.drop_rate), ("drop_path_rate", self.drop_path_rate)):
            if not 0 <= rate < 1:
                raise ConfigError(f"model.{field}={rate} is not a probability below 1; use 0 (off) to 0.99.")
        # timm ignores everything after a dot when it looks up a name.
        if "." in self.name or not is_model(self.name):
            raise ConfigError(_unknown(self.name))


def registered_by(name: str) -> Path | None:
    """Return the Python file that registered a network with timm; None for timm's own networks and this package's."""
    module = model_entrypoint(name).__module__
    if module.partition(".")[0] in ("timm", "cifar100_tk"):
        return None
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file or f"{module}.py")


def _unknown(name: str) -> str:
    # To timm, PREFIX:NAME, OWNER/NAME and NAME.TAG mean pretrained weights, which are another field here.
    plain = name.split(".")[0]
    if is_model(plain):
        return f"model.name={name!r} names pretrained weights; use {plain!r}, and model.pretrained={name!r} to start from them."
    if ":" in name or "/" in name:
        return (
            f"model.name={name!r} is a file or a repository; use a name from timm.list_models(), and model.pretrained "
            "for weights."
        )
    near = difflib.get_close_matches(name, list_models(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists the available names."
    return f"model.name={name!r} is not a timm model; {hint}"


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return create_model(name, **arguments)
    except TypeError as error:
        refused = next((argument for argument in arguments if f"'{argument}'" in str(error)), None)
        if refused is None:
            raise
        if refused == "num_classes":
            raise ConfigError(f"model.name={name!r} has no classifier; choose a model with a classifier.") from error
        given = f"model.{refused}={arguments[refused]}"
        raise ConfigError(f"{given} is not supported by {name}; set it to 0.") from error


def _create_for_size(name: str, arguments: dict[str, Any], image_size: int, problem: str) -> nn.Module:
    try:
        model = create_model(name, **arguments, img_size=image_size)
    except Exception:  # Each model raises its own type of error; the first problem is the one to report.
        raise ConfigError(_does_not_fit(name, image_size, problem)) from None
    if still := _problem_with_images(model, arguments["num_classes"], image_size):
        raise ConfigError(_does_not_fit(name, image_size, still))
    return model


def _does_not_fit(name: str, image_size: int, problem: str) -> str:
    size = f"{image_size}x{image_size}"
    return f"model.name={name!r} does not work on {size} images ({problem}); choose another, such as 'resnet50_cifar'."


def _problem_with_images(model: nn.Module, num_classes: int, image_size: int) -> str | None:
    """Run two blank images through the model, without changing it or the random state.

    Returns a short description of the problem, or None.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        model.eval()
        try:
            logits = model(torch.zeros(2, 3, image_size, image_size))
        except Exception as error:  # Each model raises its own type of error.
            return (str(error).splitlines() or [type(error).__name__])[0].strip(" .")
        finally:
            model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        return f"it does not return {num_classes} logits per image"
    return None


def _checkpoint(model: nn.Module, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]  # A method of timm's models, not of nn.Module.
    except (AttributeError, AssertionError, TypeError) as error:
        raise ConfigError(f"model.grad_checkpointing=True is not supported by {name}; leave it off.") from error
