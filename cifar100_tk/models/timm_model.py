"""A timm model, ours or any other, as the model part of a recipe."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from timm.models import create_model, is_model, list_models, model_entrypoint
from torch import nn

from cifar100_tk.errors import ConfigError

MAX_CLASSES = 100_000
"""More classes than this is a mistake or an attack: configs come from strangers, and a head can fill the memory."""


_WRITTEN = ("pretrained_cfg", "num_classes", "num_features")
"""Attributes of every timm model; known to be there before the training, not missed after it."""


@final
@dataclass(frozen=True, kw_only=True)
class TimmModel:
    """A network by its timm name, built with random weights for 32x32 RGB images."""

    name: str = "resnet50_cifar"
    """Any name in `timm.list_models()`; ours end in `_cifar`, and `resnet10_cifar_w16` is quick on a CPU."""

    drop_rate: float = 0.0
    """Probability of dropping a feature before the classifier; 0 turns dropout off."""

    drop_path_rate: float = 0.0
    """Probability of skipping the last residual branch, less for earlier ones (arXiv:1603.09382); 0 turns it off."""

    grad_checkpointing: bool = False
    """Compute activations again in the backward pass rather than keep them: less memory for about a third more time."""

    def build(self, num_classes: int) -> nn.Module:
        """Build the network in training mode on the CPU, its weights drawn from torch's global generator.

        num_classes: 1..MAX_CLASSES. Returns a module that maps (B, 3, 32, 32) floats to (B, num_classes) logits.
        Raises ConfigError for a name that timm has not, an option that the model has not, and a model unfit for 32x32.
        """
        self._check(num_classes)
        rates = {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path_rate}
        # Not every model takes a rate, so one that is off is not mentioned.
        arguments = {"num_classes": num_classes} | {field: rate for field, rate in rates.items() if rate}
        rng_state = torch.get_rng_state()
        model = _create(self.name, arguments)
        if problem := _problem_with_32x32(model, num_classes):
            # A model made for one size, as most transformers are, can often be made for another.
            torch.set_rng_state(rng_state)
            model = _create_for_32x32(self.name, arguments, problem)
        if missing := [name for name in _WRITTEN if not hasattr(model, name)]:
            raise ConfigError(
                f"model.name={self.name!r} has no {' and no '.join(missing)}, which its config.json is written from; build it "
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
        # timm ignores everything after a dot when it looks a name up.
        if "." in self.name or not is_model(self.name):
            raise ConfigError(_unknown(self.name))


def registered_by(name: str) -> Path | None:
    """Return the Python file that registered a network with timm; None for timm's own and for ours."""
    module = model_entrypoint(name).__module__
    if module.partition(".")[0] in ("timm", "cifar100_tk"):
        return None
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file or f"{module}.py")


def _unknown(name: str) -> str:
    # To timm PREFIX:NAME, OWNER/NAME and NAME.TAG mean trained weights, and here training starts from random ones.
    plain = name.split(".")[0]
    if is_model(plain):
        return f"model.name={name!r} names trained weights, and training starts from random ones; use {plain!r}."
    if ":" in name or "/" in name:
        return f"model.name={name!r} names a file or repository; use a name from timm.list_models()."
    near = difflib.get_close_matches(name, list_models(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists what there is."
    return f"model.name={name!r} is not a timm model; {hint}"


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return create_model(name, **arguments)
    except TypeError as error:
        refused = next((argument for argument in arguments if f"'{argument}'" in str(error)), None)
        if refused is None:
            raise
        if refused == "num_classes":
            raise ConfigError(f"model.name={name!r} has no classifier; choose a model that has one.") from error
        given = f"model.{refused}={arguments[refused]}"
        raise ConfigError(f"{given} cannot be used, {name} has no such option; set it to 0.") from error


def _create_for_32x32(name: str, arguments: dict[str, Any], problem: str) -> nn.Module:
    try:
        model = create_model(name, **arguments, img_size=32)
    except Exception:  # Each model refuses in its own way; what matters is the first problem.
        raise ConfigError(_does_not_fit(name, problem)) from None
    if still := _problem_with_32x32(model, arguments["num_classes"]):
        raise ConfigError(_does_not_fit(name, still))
    return model


def _does_not_fit(name: str, problem: str) -> str:
    return f"model.name={name!r} does not work on 32x32 images ({problem}); choose another, like 'resnet50_cifar'."


def _problem_with_32x32(model: nn.Module, num_classes: int) -> str | None:
    """Run two blank images through the model, which changes neither it nor the random numbers to come.

    Returns what is wrong, in a few words, or None.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        model.eval()
        try:
            logits = model(torch.zeros(2, 3, 32, 32))
        except Exception as error:  # Each model stumbles in its own way.
            return (str(error).splitlines() or [type(error).__name__])[0].strip(" .")
        finally:
            model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        return f"it does not return {num_classes} logits an image"
    return None


def _checkpoint(model: nn.Module, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]  # A method of timm's models, not of nn.Module.
    except (AttributeError, AssertionError, TypeError) as error:
        raise ConfigError(f"model.grad_checkpointing=True cannot be used with {name}; leave it off.") from error
