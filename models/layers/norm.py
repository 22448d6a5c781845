"""The paper's LN: a GroupNorm with one group, over all channels and positions of an image."""

from typing import Optional

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.GroupNorm):
    """GroupNorm(1, dim) that leaves a channels_last map channels_last, on GPUs too.

    Shapes: (B, dim, H, W) -> the same.
    """

    def __init__(self, dim: int, eps: float = 1e-5, affine: bool = True):
        super().__init__(1, dim, eps, affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


@torch.fx.wrap  # it looks at the tensor's kind, which tracing does not know
def layer_norm(
    x: torch.Tensor, weight: Optional[torch.Tensor], bias: Optional[torch.Tensor], eps: float
) -> torch.Tensor:
    if x.is_cuda and x.is_contiguous(memory_format=torch.channels_last) and not torch.compiler.is_compiling():
        return norm_channels_last(x, weight, bias, eps)
    return F.group_norm(x, 1, weight, bias, eps)


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
