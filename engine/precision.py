"""Number formats of training and evaluation, behind one step path: autocast, backward, step."""

import contextlib
import math
from typing import ContextManager, Iterable, Optional

import torch
from torch import nn

from utils.errors import ConfigError


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


class NativePrecision:
    """torch.autocast with a gradient scaler, which does nothing unless the dtype is float16."""

    def __init__(self, device: torch.device, dtype: Optional[torch.dtype]):
        self.device_type = device.type
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def __str__(self) -> str:
        return str(self.dtype or torch.float32).removeprefix("torch.") + (" autocast" if self.dtype else "")

    @property
    def skips_overflows(self) -> bool:
        """Whether an update whose gradient is not finite is left out, as loss scaling does."""
        return self.scaler.is_enabled()

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        return model, optimizer

    def rehearsal(self) -> "NativePrecision":
        """The same, with a state of its own."""
        return NativePrecision(torch.device(self.device_type), self.dtype)

    def autocast(self) -> ContextManager:
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer, last: bool) -> None:
        """Adds the loss' gradients; `last` says that the update's step follows."""
        self.scaler.scale(loss).backward()

    def clip(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], clip_grad: float
    ) -> torch.Tensor:
        """Unscales the whole update's gradients and clips their norm (0: not); returns the norm before that."""
        self.scaler.unscale_(optimizer)
        return nn.utils.clip_grad_norm_(parameters, clip_grad or math.inf)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The update's optimizer step, after `clip`."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def skip(self) -> None:
        """Leaves the update out, after `clip`."""
        self.scaler.update()

    def state_dict(self) -> dict:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


class ApexPrecision:
    """NVIDIA apex's amp with opt_level O1 or O2; the same interface as `NativePrecision`.

    Raises:
        ConfigError: apex is not there (PyPI's package of that name is another one), or the device is no GPU.
    """

    skips_overflows = True
    dtype = torch.float16

    def __init__(self, device: torch.device, opt_level: str):
        try:
            from apex import amp
        except ImportError:
            raise ConfigError(
                "AMP.BACKEND is 'apex', but NVIDIA apex.amp cannot be imported; install apex from NVIDIA's repository "
                "(PyPI's apex is another package), or use AMP.BACKEND native"
            ) from None
        if device.type != "cuda":
            raise ConfigError("AMP.BACKEND is 'apex', which works on GPUs only; use AMP.BACKEND native")
        self.amp = amp
        self.opt_level = opt_level

    def __str__(self) -> str:
        return f"apex {self.opt_level}"

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        return self.amp.initialize(model, optimizer, opt_level=self.opt_level)

    def rehearsal(self) -> NativePrecision:
        """The nearest that needs no `prepare`, which apex allows once."""
        return NativePrecision(torch.device("cuda"), torch.float16)

    def autocast(self) -> ContextManager:
        return contextlib.nullcontext()  # apex patches the model and torch itself

    def backward(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer, last: bool) -> None:
        with self.amp.scale_loss(loss, optimizer, delay_unscale=not last) as scaled:
            scaled.backward()

    def clip(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], clip_grad: float
    ) -> torch.Tensor:
        return nn.utils.clip_grad_norm_(self.amp.master_params(optimizer), clip_grad or math.inf)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def skip(self) -> None:
        """apex has patched the optimizer's next step if it is to be left out; otherwise not stepping is enough."""

    def state_dict(self) -> dict:
        return self.amp.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.amp.load_state_dict(state)


def create_precision(enabled: bool, dtype: str, backend: str, opt_level: str, device: torch.device):
    """The precision that the config's AMP section asks for.

    Raises:
        ConfigError: apex is asked for and absent, or asked for what only apex has.
    """
    if enabled and backend == "apex":
        return ApexPrecision(device, opt_level)
    if enabled and opt_level == "O2":
        raise ConfigError("AMP.OPT_LEVEL (--amp-opt-level) O2 exists in NVIDIA apex only; add AMP.BACKEND apex, or use O1")
    return NativePrecision(device, resolve_dtype(enabled, dtype, device))
