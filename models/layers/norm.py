"""The paper's LN: a GroupNorm with one group, over all channels and positions of an image."""

import functools
import os
import warnings
from typing import Callable, Optional

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.GroupNorm):
    """GroupNorm(1, dim) that leaves a channels_last map channels_last, on GPUs too.

    Args:
        dim, eps, affine: as of nn.GroupNorm.
        before_convolution: only convolutions read the result. Under autocast they would round it to 16 bits, so on GPUs it
            may come out as such; else it is float32 there.

    Shapes: (B, dim, H, W) -> the same.
    """

    def __init__(self, dim: int, eps: float = 1e-5, affine: bool = True, before_convolution: bool = False):
        super().__init__(1, dim, eps, affine)
        self.before_convolution = before_convolution

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps, self.before_convolution)


@torch.fx.wrap  # it looks at the tensor's kind, which tracing does not know
def layer_norm(
    x: torch.Tensor,
    weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    eps: float,
    before_convolution: bool = False,
) -> torch.Tensor:
    if not x.is_cuda or not x.is_contiguous(memory_format=torch.channels_last) or torch.compiler.is_compiling():
        return F.group_norm(x, 1, weight, bias, eps)
    if not torch.jit.is_scripting():
        kernel = kernel_for(x)
        if kernel is not None:
            return kernel(x, weight, bias, eps, result_dtype(x, before_convolution))
    return norm_channels_last(x, weight, bias, eps)


def result_dtype(x: torch.Tensor, before_convolution: bool) -> torch.dtype:
    """The input's; under autocast float32, as of torch's norms, or what the convolution behind it would make of that."""
    if not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type) if before_convolution else torch.float32


def kernel_for(x: torch.Tensor) -> Optional[Callable]:
    """`norm_triton.group_norm` if it takes such a map; None if torch's operators have to do it."""
    plain = type(x) is torch.Tensor and not torch.jit.is_tracing() and not torch._C._are_functorch_transforms_active()
    if not plain or not x.numel() or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return None
    return find_kernel(x.device)


@functools.cache
def find_kernel(device: torch.device) -> Optional[Callable]:
    """`norm_triton.group_norm`, if Triton is there and computes on this device what torch does; else None, with a warning.

    FAT_TRITON=0 in the environment leaves it out.
    """
    if os.environ.get("FAT_TRITON") == "0":
        return None
    try:
        from .norm_triton import group_norm

        require_right_values(group_norm, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no Triton, no C compiler for it, an old driver or GPU: of many kinds
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"FAT's norm is computed by torch's operators, which takes longer: {reason}", stacklevel=2)
        return None
    return group_norm


@torch.inference_mode(False)
@torch.enable_grad()
def require_right_values(group_norm: Callable, device: torch.device) -> None:
    """Raises RuntimeError: the kernel gives other values or gradients than torch. Draws no random numbers."""
    with torch.autocast(device.type, enabled=False):
        waves = torch.arange(2 * 24 * 20 * 20, device=device, dtype=torch.float32).sin().view(2, 24, 20, 20)
        x = (waves + 1).to(memory_format=torch.channels_last).requires_grad_()
        weight, bias = (waves[0, :, 0, i].clone().requires_grad_() for i in range(2))
        results = []
        for y in (group_norm(x, weight, bias, 1e-5, x.dtype), F.group_norm(x, 1, weight, bias, 1e-5)):
            results.append([y, *torch.autograd.grad((y * waves.cos()).sum(), (x, weight, bias))])
        for ours, theirs in zip(*results):
            error = (ours - theirs).abs().max().item()
            if not error < 1e-3 * (1 + theirs.abs().max().item()):
                raise RuntimeError(f"the Triton kernel is {error:.1e} away from torch's norm on {device}")


def norm_channels_last(
    x: torch.Tensor, weight: Optional[torch.Tensor], bias: Optional[torch.Tensor], eps: float
) -> torch.Tensor:
    """GroupNorm with one group of a channels_last map (B, C, H, W), by layer_norm in the order of the memory.

    torch's GroupNorm keeps the layout on CPUs only; on CUDA its result is NCHW, and every convolution after it would
    turn the map round again.
    """
    images = x.permute(0, 2, 3, 1)  # (B, H, W, C), contiguous
    normed = F.layer_norm(images.flatten(1), (images[0].numel(),), eps=eps).view(images.shape)
    if weight is not None and bias is not None:
        normed = normed * weight + bias
    return normed.permute(0, 3, 1, 2)
