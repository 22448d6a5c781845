"""What the stages have in common: what they work with, what they say, and how two results are compared."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

import timm
import torch
import torch.nn.functional as F
from torch import nn

import models  # noqa: F401  (registers FAT with timm)


@dataclass(frozen=True)
class Setting:
    """Where and with what a stage works."""

    dry_run: bool
    folder: Path  # to write to; the stage's own
    until: float  # of time.monotonic(): when it has to have ended

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.dry_run else torch.device("cuda", 0)

    @property
    def model(self) -> str:
        return "fat_tiny" if self.dry_run else "fat_b0"

    @property
    def img_size(self) -> int:
        return 64 if self.dry_run else 224

    @property
    def start_method(self) -> str:
        """How processes are started: a process that has used a GPU cannot fork."""
        return "fork" if self.dry_run else "spawn"

    @property
    def seconds_left(self) -> float:
        return self.until - time.monotonic()

    def images(self, batch_size: int, seed: int = 0) -> torch.Tensor:
        """float32 (batch_size, 3, H, W) on the CPU, the same on each machine."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch_size, 3, self.img_size, self.img_size, generator=generator)

    def new_model(self, name: str = "", **settings) -> nn.Module:
        """A model on the CPU in training mode whose weights are the same each time, in NCHW."""
        torch.manual_seed(0)
        return timm.create_model(name or self.model, **settings)

    def wait(self) -> None:
        """Until the GPU has done what it was given."""
        if not self.dry_run:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Check:
    """What was measured, and whether it is what it has to be."""

    name: str
    value: Any
    bound: str
    passed: bool
    details: dict = field(default_factory=dict)  # for the JSON file


def below(name: str, value: float, bound: float, **details) -> Check:
    """NaN is not below anything."""
    return Check(name, value, f"<{bound:g}", value < bound, details)


def at_least(name: str, value: float, bound: float, **details) -> Check:
    return Check(name, value, f">={bound:g}", value >= bound, details)


def equal(name: str, value: Any, expected: Any, **details) -> Check:
    return Check(name, value, f"={expected}", value == expected, details)


def measured(name: str, value: Any, **details) -> Check:
    """A figure that nothing is asked of but to be there."""
    return Check(name, value, "none", not isinstance(value, float) or math.isfinite(value), details)


def last_line(path: Path) -> str:
    """What a process last said, of its log."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "no output")


def distance(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """How far tensors are from others, all together: the length of the difference over the length of `b`."""
    square, whole = 0.0, 0.0
    for ours, theirs in zip(a, b, strict=True):
        ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
        square += (ours - theirs).square().sum().item()
        whole += theirs.square().sum().item()
    return math.sqrt(square / whole)


def logits_of(model: nn.Module, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(B, classes) in evaluation mode; under autocast if `dtype` is of 16 bits."""
    model.eval()
    with torch.inference_mode(), torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
        return model(images).float()


def gradients_of(
    model: nn.Module, images: torch.Tensor, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> list[torch.Tensor]:
    """Of the cross-entropy in training mode, by parameter; the loss is multiplied by `scale` on the way back."""
    model.train()
    model.zero_grad()
    targets = torch.arange(len(images), device=images.device)
    with torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
        loss = F.cross_entropy(model(images), targets)
    (loss * scale).backward()
    return [parameter.grad / scale for parameter in model.parameters()]
