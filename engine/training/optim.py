"""Optimizer and learning rate schedule, by timm's factories."""

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from timm.optim import Lamb, Lars, create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from utils.errors import ConfigError, did_you_mean

from ..setup.precision import Precision
from .nonfinite import FiniteGuard
from .sharding import local_part


def create_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    eps: float,
    betas: Sequence[float],
    momentum: float,
    layer_decay: float,
) -> torch.optim.Optimizer:
    """An optimizer of timm's by name; biases and norms get no weight decay.

    `layer_decay` below 1 scales each layer's learning rate by the model's `group_matcher`.

    Raises:
        ConfigError: timm does not know `name`, or it needs a package that is not there.
    """
    name = name.lower()
    if name not in list_optimizers():
        raise ConfigError(f"TRAIN.OPTIMIZER.NAME is {name!r}; {did_you_mean(name, map(str, list_optimizers()))}")
    info = get_optimizer_info(name)
    if info.second_order:
        raise ConfigError(f"TRAIN.OPTIMIZER.NAME {name!r} needs second derivatives, which are not computed; use adamw")
    options: dict[str, Any] = {}
    if info.has_eps:
        options["eps"] = eps
    if info.has_betas:
        options["betas"] = tuple(betas)
    if info.opt_class in (torch.optim.Adam, torch.optim.AdamW):
        # One pass over all parameters, on GPUs and CPUs. Not SGD's: a first step that overflows in float16 leaves it with
        # momentum from uninitialised memory (torch 2.15).
        options["fused"] = True
    try:
        return create_optimizer_v2(
            model,
            opt=name,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            layer_decay=layer_decay if layer_decay < 1 else None,
            **options,
        )
    except (ImportError, AttributeError, AssertionError, RuntimeError) as error:
        hint = "; install NVIDIA apex from its repository (PyPI's apex is another package)" if "fused" in name else ""
        raise ConfigError(f"TRAIN.OPTIMIZER.NAME {name!r} cannot be used here ({error}){hint}") from error
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"TRAIN.OPTIMIZER: {name} refuses its settings ({error}); check EPS, BETAS, MOMENTUM"
        ) from error


def describe_trust_ratio(optimizer: torch.optim.Optimizer) -> str:
    """Which tensors LAMB or LARS gives an LR of their own by their trust ratio, for the log; '' for other optimizers.

    timm's rule: those with weight decay, so no norms and biases, as in both papers' code.
    """
    inner = local_part(optimizer)
    if not isinstance(inner, (Lamb, Lars)):
        return ""
    name, groups = type(inner).__name__.upper(), optimizer.param_groups
    scaled = sum(len(group["params"]) for group in groups if group["weight_decay"] or group["always_adapt"])
    if not scaled:
        return f"warning: TRAIN.WEIGHT_DECAY is 0, and {name} scales weights with weight decay only: it scales none"
    total = sum(len(group["params"]) for group in groups)
    line = f"{name}'s trust ratio scales {scaled} of {total} tensors, those with weight decay"
    if isinstance(inner, Lamb):
        line += (
            f"; a gradient whose norm is above {inner.defaults['max_grad_norm']} is scaled down to it (timm's default)"
        )
    return line


@dataclass(frozen=True)
class LearningRate:
    """How it goes over a run: TRAIN.LR_SCHEDULER's and TRAIN's keys, for this batch."""

    name: str  # 'cosine', 'linear', 'poly', 'step' or 'multistep'
    epochs: int
    warmup_epochs: float = 0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    warmup_prefix: bool = False
    decay_epochs: int = 30  # of 'step'
    decay_rate: float = 0.1
    power: float = 0.9  # of 'poly'
    milestones: Sequence[float] = ()  # of 'multistep', epochs


def create_lr_scheduler(optimizer: torch.optim.Optimizer, curve: LearningRate, updates_per_epoch: int) -> Scheduler:
    """A schedule over updates: `step_update(n)` sets the learning rate of update n, whatever came before.

    Linear warmup from `warmup_lr`, then 'cosine', 'linear' or 'poly' ('linear' to a power) to `min_lr`, or 'step' by
    `decay_rate` every `decay_epochs`, or 'multistep' by it after each of the `milestones`. With `warmup_prefix` the
    schedule begins after the warmup; without, the warmup covers its start, so
    the learning rate jumps from the peak to where the schedule already is (the released code's way).
    """
    # timm counts in updates and takes parts of epochs, which its annotations do not say.
    in_epochs: dict[str, Any] = dict(
        num_epochs=curve.epochs - curve.warmup_epochs if curve.warmup_prefix else curve.epochs,
        warmup_epochs=curve.warmup_epochs,
        # It lowers the rate an update before a milestone.
        decay_milestones=[milestone + 0.5 / updates_per_epoch for milestone in curve.milestones],
    )
    lr_scheduler, _ = create_scheduler_v2(
        optimizer,
        sched={"linear": "poly"}.get(curve.name, curve.name),
        warmup_lr=curve.warmup_lr,
        min_lr=curve.min_lr,
        warmup_prefix=curve.warmup_prefix,
        decay_epochs=curve.decay_epochs,
        decay_rate={"linear": 1.0, "poly": curve.power}.get(curve.name, curve.decay_rate),  # of timm's poly its power
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
        **in_epochs,
    )
    return lr_scheduler


@dataclass
class Optimisation:
    """How the gradients of micro-batches become an update."""

    optimizer: torch.optim.Optimizer
    lr_scheduler: Scheduler
    precision: Precision
    guard: FiniteGuard
    clip_grad: float  # largest norm of the gradient; 0: not clipped

    @property
    def lr(self) -> float:
        """The learning rate of the parameters that learn fastest."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def states(self) -> dict[str, Any]:
        """What a checkpoint keeps, by its keys there."""
        return {"optimizer": ResumableOptimizer(self.optimizer), "scaler": self.precision}


class ResumableOptimizer:
    """An optimizer's state for checkpoints. Moments and counters come back from the file, settings (weight decay, betas,
    ...) stay the present config's, so that a changed one takes effect on resume.

    Raises:
        ValueError: at `load_state_dict`, if the state is of another kind of optimizer or of other parameter groups.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.kind = type(local_part(optimizer)).__name__

    def state_dict(self) -> dict:
        """Where the state is shared out, each process gets that of the parameters that it keeps."""
        return {"kind": self.kind, **self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        if state["kind"] != self.kind:
            raise ValueError(f"it is of {state['kind']}, this one is {self.kind}")
        groups = torch.optim.Optimizer.state_dict(self.optimizer)["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in state["param_groups"]]:
            raise ValueError("its parameter groups are not this optimizer's")
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        if numbers != list(range(len(parameters))) or (state["state"] and sorted(state["state"]) != numbers):
            raise ValueError("its state is not of this optimizer's parameters")
        kinds = {tuple(entry) for entry in state["state"].values()}
        shapes = [
            value.shape in ((), (1,), parameters[number].shape) or "exp_avg" not in key
            for number, entry in state["state"].items()
            for key, value in entry.items()
            if isinstance(value, torch.Tensor)
        ]
        if len(kinds) > 1 or not all(shapes):
            raise ValueError("its moments are not of this optimizer's parameters")
        settings = {*self.optimizer.defaults, "params", "weight_decay", "lr_scale", "initial_lr"} - {"lr"}
        groups = [
            {**saved, **{key: value for key, value in group.items() if key in settings}}
            for saved, group in zip(state["param_groups"], groups)
        ]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        for parameter, entry in local_part(self.optimizer).state.items():
            for key, value in entry.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    # Fused steps go through memory side by side, whatever layout the file's moments had.
                    entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
