"""Number formats of training and evaluation, behind one step path: autocast, backward, step."""

import math
from typing import Any, ContextManager, Iterable, Optional, Protocol

import torch
from torch import nn


def resolve_dtype(enabled: bool, dtype: str, device: torch.device) -> Optional[torch.dtype]:
    """The autocast dtype, or None for float32.

    'auto' is bfloat16 on CUDA, float16 on GPUs without bfloat16, and float32 on the CPU, where autocast is slower.
    """
    if not enabled:
        return None
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class Precision(Protocol):
    """What a number format is: all that training and evaluation ask of it. `str()` of one names it, for the log.

    An update asks in this order:

        with precision.autocast(): ...                       forward, and the loss
        precision.backward(loss)                             for each micro-batch
        precision.clip(optimizer, parameters, clip_grad)     once all gradients are there
        precision.step(optimizer), or precision.skip()
    """

    @property
    def dtype(self) -> Optional[torch.dtype]:
        """Of matrix products and convolutions; None: float32."""

    @property
    def skips_overflows(self) -> bool:
        """Whether an update whose gradient is not finite is left out, as loss scaling does."""

    def rehearsal(self) -> "Precision":
        """The same, with a state of its own."""

    def autocast(self) -> ContextManager:
        """The block computes in this format."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the loss' gradients."""

    def clip(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], clip_grad: float
    ) -> torch.Tensor:
        """Unscales the whole update's gradients and clips their norm (0: not); returns the norm before that."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The update's optimizer step, after `clip`."""

    def skip(self) -> None:
        """Leaves the update out, after `clip`."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with what `state_dict` gave, of this format or another one."""


class NativePrecision:
    """torch.autocast with a gradient scaler, which does nothing unless the dtype is float16; see `Precision`."""

    def __init__(self, device: torch.device, dtype: Optional[torch.dtype]):
        self.device_type = device.type
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def __str__(self) -> str:
        return str(self.dtype or torch.float32).removeprefix("torch.") + (" autocast" if self.dtype else "")

    @property
    def skips_overflows(self) -> bool:
        return self.scaler.is_enabled()

    def rehearsal(self) -> "NativePrecision":
        return NativePrecision(torch.device(self.device_type), self.dtype)

    def autocast(self) -> ContextManager:
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def clip(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], clip_grad: float
    ) -> torch.Tensor:
        self.scaler.unscale_(optimizer)
        return nn.utils.clip_grad_norm_(parameters, clip_grad or math.inf)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.step(optimizer)
        self.scaler.update()

    def skip(self) -> None:
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


def create_precision(enabled: bool, dtype: str, device: torch.device) -> Precision:
    """The precision that the config's AMP section asks for."""
    return NativePrecision(device, resolve_dtype(enabled, dtype, device))
