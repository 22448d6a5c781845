"""Stage: the Triton kernel of the norm is in use, has the reference's values, and how long it takes beside torch's."""

import time
from typing import Callable, Iterator, Optional

import torch
import torch.nn.functional as F

from models.layers import norm

from .setting import Check, Setting, below, distance, equal, measured

SHAPES = ((32, 56, 56), (80, 28, 28), (160, 14, 14), (256, 7, 7))  # FAT-B0's maps, and its last stages'
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
EPS = 1e-5


def checks(setting: Setting) -> Iterator[Check]:
    kernel = norm.find_kernel(setting.device)
    yield equal("kernel in use", kernel is not None, not setting.dry_run)
    candidate = kernel or fallback
    for dtype, bound in BOUNDS.items():
        worst = max(error_of(setting, candidate, dtype, (2, *shape)) for shape in SHAPES)
        yield below(f"{str(dtype).removeprefix('torch.')} values and gradients", worst, bound)
    yield below("values of maps far from 0", error_of(setting, candidate, torch.float32, (2, 32, 28, 28), 100.0), 1e-4)
    forms: dict[str, Optional[Callable]] = {"kernel": kernel, "layer_norm": fallback, "group_norm": torch_norm}
    batch_size = 1 if setting.dry_run else 128
    for shape in SHAPES[: 1 if setting.dry_run else 4]:
        for name, form in forms.items():
            if form:
                yield measured(
                    f"{name} {shape}, us forward and backward", seconds_of(setting, form, (batch_size, *shape))
                )


def fallback(x, weight, bias, eps, dtype) -> torch.Tensor:
    return norm.norm_channels_last(x, weight.to(x.dtype), bias.to(x.dtype), eps).to(dtype)


def torch_norm(x, weight, bias, eps, dtype) -> torch.Tensor:
    return F.group_norm(x, 1, weight.to(x.dtype), bias.to(x.dtype), eps).to(dtype)


def inputs(setting: Setting, dtype: torch.dtype, shape: tuple[int, ...], mean: float) -> list[torch.Tensor]:
    """A map, weight, bias and the result's gradient."""
    generator = torch.Generator().manual_seed(0)
    x, slopes = (torch.randn(shape, generator=generator) for _ in range(2))
    x, slopes = (
        (t + shift).to(setting.device, dtype, memory_format=torch.channels_last)
        for t, shift in ((x, mean), (slopes, 0))
    )
    weight, bias = (torch.randn(shape[1], generator=generator).to(setting.device) for _ in range(2))
    return [x, weight, bias, slopes]


def error_of(setting: Setting, form: Callable, dtype: torch.dtype, shape: tuple[int, ...], mean: float = 1.0) -> float:
    """The largest distance among result and gradients to the same in float64, from the rounded map."""
    *values, slopes = inputs(setting, dtype, shape, mean)
    ours = results(lambda x, weight, bias: form(x, weight, bias, EPS, dtype), values, slopes)
    exact = results(lambda x, *affine: F.group_norm(x, 1, *affine, EPS), [t.double() for t in values], slopes.double())
    return max(distance([a], [b]) for a, b in zip(ours, exact))


def results(form: Callable, values: list[torch.Tensor], slopes: torch.Tensor) -> list[torch.Tensor]:
    leaves = [value.detach().clone(memory_format=torch.preserve_format).requires_grad_() for value in values]
    y = form(*leaves)
    return [y, *torch.autograd.grad(y, leaves, slopes)]


def seconds_of(setting: Setting, form: Callable, shape: tuple[int, ...]) -> float:
    """Microseconds of a pass forward and backward in bfloat16, the median of some."""
    *values, slopes = inputs(setting, torch.bfloat16, shape, 1.0)
    times = []
    for _ in range(3 if setting.dry_run else 30):
        setting.wait()
        started = time.perf_counter()
        results(lambda x, weight, bias: form(x, weight, bias, EPS, torch.bfloat16), values, slopes)
        setting.wait()
        times.append(time.perf_counter() - started)
    return round(sorted(times)[len(times) // 2] * 1e6, 1)
