"""The training state of a run, the parts of an optimizer step, and saving to and restoring from a checkpoint."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from cifar100_tk import draws
from cifar100_tk.distributed.collectives import broadcast_json, raise_on_all_ranks
from cifar100_tk.distributed.memory import Workload
from cifar100_tk.errors import CifarError, DataError, ResumeError
from cifar100_tk.models import FineTune
from cifar100_tk.models.finetune import Freezer, backbone_of, scale_lr
from cifar100_tk.models.pretrained import Pretrained, load_pretrained
from cifar100_tk.optim import load_named_state, named_state
from cifar100_tk.recipe import Recipe
from cifar100_tk.storage.tensor_file import Tensors
from cifar100_tk.tensors import Images, Logits, Targets
from cifar100_tk.training.compiling import allow_compiling, compile_network
from cifar100_tk.training.length import NO_STEPS, RunLength
from cifar100_tk.training.teacher import Teacher

MAX_OVERFLOWS = 40
"""fp16 steps that may overflow in a row; the loss scale halves each time, so after that the gradient itself is not finite."""


@dataclass
class TrainState:
    """The network in its three roles, the optimizer, the average of the weights, and the progress."""

    accelerator: Accelerator
    recipe: Recipe
    net: nn.Module
    """The bare network; its parameter names are used in every file."""
    model: nn.Module
    """The same network as trained: under autocast, and wrapped for several processes."""
    optimizer: torch.optim.Optimizer
    """Accelerate's wrapper of the torch optimizer."""
    ema: ModelEmaV3 | None
    slow: dict[str, Tensor] = field(default_factory=dict)
    """The slow weights of Lookahead, by name; {} without it."""
    length: RunLength = NO_STEPS
    """Optimizer steps of the whole run, which Lookahead depends on."""
    pretrained: Pretrained | None = None
    """The weights that the network started from; None for random ones."""
    freezer: Freezer | None = None
    """Keeps parameters frozen; None if all are trained."""
    step: int = 0
    """Optimizer steps done."""
    epoch_loss: float = 0.0
    """Sum of the mean losses over the current epoch's steps before the last stop; 0 at the start of an epoch.

    At the end of an epoch it is 0 if the epoch has been reported, and nonzero if the run was stopped while evaluating.
    """
    images_per_second: float = 0.0
    """Training speed before the last stop, for the report of an epoch that is written after resuming."""
    start_time: float = field(default_factory=time.perf_counter)
    """The start of the run on this process's clock, as if it had never been interrupted."""
    reported_seconds: float = 0.0
    """`seconds` when the last epoch was reported."""
    teacher: Teacher | None = None
    """The network that this one learns from, for a recipe with distillation."""

    def __post_init__(self) -> None:
        self.model.train()  # Evaluation restores the mode that it finds.
        # Looked up once; the tensor objects stay the same for the whole run.
        self._parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self._statistics = [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]
        self._counters = [buffer for buffer in self.net.buffers() if not buffer.is_floating_point()]

    @property
    def seconds(self) -> float:
        """Wall time of the run: of this process, and of earlier ones up to the checkpoint that it resumes from."""
        return time.perf_counter() - self.start_time

    @property
    def measured(self) -> nn.Module:
        """The network that is saved as the model: the average if there is one."""
        return self.net if self.ema is None else self.ema.module

    @classmethod
    def build(
        cls,
        recipe: Recipe,
        accelerator: Accelerator,
        num_classes: int,
        *,
        compile_model: bool,
        length: RunLength = NO_STEPS,
        sync_batchnorm: bool = False,
        whitening_images: Images | None = None,
        teacher: Teacher | None = None,
    ) -> TrainState:
        """Build the network with weights that depend on the seed alone, and prepare it for the device.

        length: steps of the whole run, needed with Lookahead only.
        whitening_images: (N, 3, S, S), normalized training images on the host, for a recipe with whitening.
        teacher: for a recipe with distillation. Every rank takes part.
        """
        torch.manual_seed(draws.word(recipe.seed, "weights", 0))
        net = recipe.model.build(num_classes, recipe.image_size)
        pretrained = _load_pretrained(net, recipe, accelerator)
        if recipe.whitening is not None:
            assert whitening_images is not None, "whitening needs images"
            recipe.whitening.apply(net, whitening_images)
        net = net.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if sync_batchnorm:
            net = convert_sync_batchnorm(net)  # The names and the numbers of parameters and buffers stay the same.
        # Copied before Accelerate patches `forward` and before compiling, so that it is a plain network.
        ema = recipe.ema.build(net) if recipe.ema else None
        slow = recipe.lookahead.build(net) if recipe.lookahead else {}
        # With a fused update torch's loss scaler skips an overflow silently.
        fused = accelerator.device.type == "cuda" and accelerator.scaler is None
        finetune = recipe.finetune or FineTune()
        backbone = frozenset() if pretrained is None else backbone_of(net, pretrained)
        frozen = finetune.apply(net)
        raw_optimizer = recipe.optimizer.build(net, fused=fused)
        freezer = None
        if recipe.finetune is not None:
            scale_lr(raw_optimizer, finetune.lr_scales(net, backbone))
            several = accelerator.num_processes > 1
            freezer = Freezer(net, frozen, backbone, finetune.freeze_epochs, in_graph=several)
        allow_compiling()  # Accelerate may do it too.
        if compile_model:
            compile_network(net)
        with warnings.catch_warnings():
            # torch renames this option; its older releases and Accelerate do not know the new name yet.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            model, optimizer = accelerator.prepare(net, raw_optimizer)
        return cls(accelerator, recipe, net, model, optimizer, ema, slow, length, pretrained, freezer, teacher=teacher)

    def describe_start(self) -> dict[str, str]:
        """Return the rows of the plan about the weights that the run starts from, by label."""
        rows: dict[str, str] = {}
        if self.pretrained is not None:
            rows["weights"] = self.pretrained.describe()
        if self.freezer is not None:
            rows["frozen"] = self.freezer.describe()
        if self.recipe.finetune is not None and (rates := self.recipe.finetune.describe()):
            rows["rates"] = rates
        return rows

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step; a group with an `lr_scale` gets that fraction of it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def set_epoch(self, epoch: int) -> None:
        """Freeze and unfreeze what the recipe says for an epoch, counted from 0."""
        if self.freezer is not None and self.freezer.set_epoch(epoch):
            self._statistics = self.freezer.statistics()

    def seed_dropout(self, step: int) -> None:
        """Seed dropout and drop-path, which depend on the step and the rank only."""
        torch.manual_seed(draws.word(self.recipe.seed, "dropout", step, self.accelerator.process_index))

    def workload(self, num_classes: int) -> Workload:
        """Return what a step of this run computes, to try how many images fit in memory."""
        return Workload(self.accelerator, self.net, self.loss, num_classes, self.recipe.image_size)

    def loss(self, logits: Logits, targets: Targets, images: Images) -> Tensor:
        """Return the recipe's mean loss, (), with the teacher's share if there is one. images: those that the logits are of."""
        loss = self.recipe.loss(logits, targets)
        if self.recipe.distillation is None:
            return loss
        assert self.teacher is not None, "distillation needs a teacher"
        return self.recipe.distillation(loss, logits, self.teacher(images))

    def averaging(self, average: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context for a forward and a backward pass, after which the processes average their gradients, or not."""
        return contextlib.nullcontext() if average else self.accelerator.no_sync(self.model)

    @contextlib.contextmanager
    def perturbed(self) -> Iterator[None]:
        """Move the weights along the gradient inside the block, as SAM does, and clear it. Every rank takes part.

        At the end weights and running statistics are again what they were, bit for bit.
        """
        assert self.recipe.sam is not None
        kept = [*self._parameters, *self._statistics, *self._counters]
        before = [tensor.detach().clone() for tensor in kept]
        self.recipe.sam.perturb(self._parameters, self._summed_gradient())
        for parameter in self._parameters:
            parameter.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(kept, before)

    @torch.no_grad()
    def _summed_gradient(self) -> list[Tensor]:
        """Return the gradient of each trainable parameter, summed over all processes. Every rank takes part."""
        self._drop_frozen_gradients()
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        if self.accelerator.num_processes == 1:
            return gradient
        flat = self.accelerator.reduce(torch.cat([part.flatten() for part in gradient]), reduction="sum")
        parts = flat.split([part.numel() for part in gradient])
        return [part.view(p.shape) for part, p in zip(parts, gradient, strict=True)]

    def clip_gradient(self) -> Tensor:
        """Drop the gradient of frozen parameters, and clip the rest if the recipe says so.

        Returns its L2 norm before clipping, (), or 0 if fp16's scaler checks it.
        """
        self._drop_frozen_gradients()
        scaler = self.accelerator.scaler
        if self.recipe.clip_grad_norm:
            norm: Tensor = self.accelerator.clip_grad_norm_(self._parameters, self.recipe.clip_grad_norm)
            # The fp16 scaler skips the step of an infinite gradient; that is not an error.
            return norm if scaler is None else torch.zeros_like(norm)
        if scaler is not None:
            return torch.zeros((), device=self.accelerator.device)
        return torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])

    def _drop_frozen_gradients(self) -> None:
        if self.freezer is not None:
            self.freezer.drop_gradients()

    def complete_step(self, step: int) -> None:
        """Count a finished step, and update the averages. Every rank takes part."""
        self.step = step + 1
        self._average_running_statistics()
        if self.recipe.lookahead is not None:
            self.recipe.lookahead.update(self.slow, self.net, self.step, self.length.at(self.step - 1))
        if self.ema is not None:
            self.ema.update(self.net, self.step)

    @torch.no_grad()
    def _average_running_statistics(self) -> None:
        """Average BatchNorm's running statistics over all processes. Every rank takes part.

        Each process sees its own share, so without this every rank would evaluate and save a different network. It is done
        at every step, in one message of 0.2 MB for ResNet-50, so it does not depend on evaluations or checkpoints.
        """
        if self.accelerator.num_processes == 1:
            return
        if buffers := self._statistics:
            flat = self.accelerator.reduce(torch.cat([buffer.flatten() for buffer in buffers]), reduction="mean")
            means = flat.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [mean.view_as(buffer) for mean, buffer in zip(means, buffers, strict=True)])

    def tensors(self) -> dict[str, Tensors]:
        """Return the tensors of a checkpoint, by file."""
        ema = {} if self.ema is None else {"ema": self.ema.module.state_dict()}
        slow = {"lookahead": self.slow} if self.slow else {}
        return {"model": self.net.state_dict(), "optimizer": dict(named_state(self.net, self.optimizer))} | ema | slow

    def facts(self) -> dict[str, Any]:
        """Return the other values of a checkpoint."""
        return {
            "scaler": self._scale(),
            "epoch_loss": self.epoch_loss,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "reported_seconds": self.reported_seconds,
        }

    def _scale(self) -> dict[str, Any] | None:
        return None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()

    def restore(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Restore the values of `tensors` and `facts`. Raises ResumeError before changing anything if they do not fit."""
        for name, wanted in self.tensors().items():
            if name != "optimizer" and _kinds(tensors.get(name, {})) != _kinds(wanted):
                raise ResumeError(
                    f"the checkpoint's {name}.safetensors belongs to a different network; choose another --output-dir."
                )
        parameters = dict(self.net.named_parameters())
        for full_name, value in tensors.get("optimizer", {}).items():
            parameter = parameters.get(full_name.partition("/")[2])
            if parameter is None or value.shape not in (parameter.shape, torch.Size([])):
                raise ResumeError(
                    f"the checkpoint's optimizer.safetensors holds {full_name} of shape {tuple(value.shape)}, which "
                    "belongs to a different network; choose another --output-dir."
                )
        names = ("epoch_loss", "images_per_second", "seconds", "reported_seconds")
        numbers: list[Any] = [facts.get(name) for name in names]
        if "optimizer" not in tensors or not all(isinstance(number, float) for number in numbers):
            raise ResumeError("the checkpoint was not written by a training run; choose another --output-dir.")
        self.net.load_state_dict(dict(tensors["model"]))
        load_named_state(self.net, self.optimizer, tensors["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(dict(tensors["ema"]))
        for name, value in self.slow.items():
            value.copy_(tensors["lookahead"][name])
        if self.accelerator.scaler is not None and facts.get("scaler"):
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.step, (self.epoch_loss, self.images_per_second, seconds, self.reported_seconds) = step, numbers
        self.start_time -= seconds

    def share(self) -> None:
        """Broadcast the restored state from the main process, which alone reads files. Every rank takes part."""
        if self.accelerator.num_processes == 1:
            return
        loop_state = {"step": self.step, "epoch_loss": self.epoch_loss, "scaler": self._scale()}
        state = [
            (name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in named_state(self.net, self.optimizer)
        ]
        shared, optimizer_state = broadcast_json(self.accelerator, (loop_state, state))
        if not self.accelerator.is_main_process:
            empty = {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, shape, dtype in optimizer_state}
            load_named_state(self.net, self.optimizer, empty)
            self.step, self.epoch_loss = shared["step"], shared["epoch_loss"]
            if self.accelerator.scaler is not None and shared["scaler"]:
                self.accelerator.scaler.load_state_dict(shared["scaler"])
        for values in self.tensors().values():
            for _, tensor in sorted(values.items()):
                _broadcast(tensor, self.accelerator)


def _load_pretrained(net: nn.Module, recipe: Recipe, accelerator: Accelerator) -> Pretrained | None:
    """Load the recipe's pretrained weights, if it has any. Every rank takes part; all must read the same."""
    source = recipe.model.pretrained
    if source is None:
        return None
    loaded: Pretrained | None = None
    error: CifarError | None = None
    with accelerator.main_process_first():  # The main process fetches them; the others then find them in the cache.
        try:
            loaded = load_pretrained(net, source, recipe.model.name)
        except CifarError as caught:
            error = caught
    raise_on_all_ranks(accelerator, error)
    assert loaded is not None
    if accelerator.num_processes > 1 and (theirs := broadcast_json(accelerator, loaded.sha256)) != loaded.sha256:
        error = DataError(
            f"rank {accelerator.process_index} reads weights from {source} unlike rank 0's (sha256 {loaded.sha256[:16]}, not "
            f"{theirs[:16]}); give every machine the same file."
        )
    raise_on_all_ranks(accelerator, error)
    return loaded


@torch.no_grad()
def _broadcast(tensor: Tensor, accelerator: Accelerator) -> None:
    # By way of a contiguous copy on the device: AdamW's counters live on the host, weights are channels_last.
    moved = tensor.detach().to(accelerator.device).contiguous()
    torch.distributed.broadcast(moved, src=0)
    tensor.copy_(moved)


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
