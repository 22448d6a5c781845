"""Depthwise convolution: CPE, FASA's local side, ConvFFN and the downsampling are made of it."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn

MAX_SIDE = 160  # of the output, up to which the weight gradient below was seen to be faster


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel by itself, with the names and values of `nn.Conv2d(dim, dim, ..., groups=dim)`.

    On CPUs the weight's gradient in float32 is computed as a convolution, see `DepthwiseConvolution`.

    Args:
        dim: channels.
        kernel_size: side of the kernel, odd.
        stride: 1 or 2.

    Shapes: (B, dim, H, W) -> (B, dim, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, dim: int, kernel_size: int, stride: int = 1):
        super().__init__(dim, dim, kernel_size, stride, kernel_size // 2, groups=dim)
        self.register_buffer("identity", identity_kernel(kernel_size), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._convolve(x, self.weight)

    def plus_identity(self, x: torch.Tensor) -> torch.Tensor:
        """DWConv(x) + x, as one convolution whose kernel has 1 more in its middle.

        In 16 bits the sum stays a sum: next to the 1, a weight would keep two or three of its digits.
        """
        if x.dtype in HALF or torch.is_autocast_enabled(x.device.type):
            return self._convolve(x, self.weight) + x
        return self._convolve(x, self.weight + self.identity)

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        fast = (
            x.device.type == "cpu"
            and x.dtype is torch.float32 is weight.dtype
            and self.kernel_size[0] >= 5
            and max(x.shape[2:]) <= MAX_SIDE * self.stride[0]
            and torch.is_grad_enabled()
            and weight.requires_grad
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )
        convolve = DepthwiseConvolution.apply if fast else F.conv2d
        return convolve(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


HALF = (torch.bfloat16, torch.float16)


def identity_kernel(kernel_size: int) -> torch.Tensor:
    """The depthwise kernel (1, 1, k, k) that leaves a map as it is."""
    kernel = torch.zeros(1, 1, kernel_size, kernel_size)
    kernel[..., kernel_size // 2, kernel_size // 2] = 1
    return kernel


def as_kernel(image: torch.Tensor) -> torch.Tensor:
    """(C, H, W) -> (C, 1, H, W), contiguous; torch is fast at turning round matrices, but not maps."""
    matrix = image.permute(1, 2, 0).flatten(0, 1)  # (HW, C)
    return matrix.t().contiguous().view(len(image), 1, *image.shape[1:])


class DepthwiseConvolution(torch.autograd.Function):
    """F.conv2d of a depthwise kernel, with another way to the weight's gradient:

        dL/dW[c, i, j] = sum over b, y, x of dL/dY[b, c, y, x] * X[b, c, s y + i - p, s x + j - p]

    is itself a depthwise convolution of each image X[b] with the kernel dL/dY[b], dilated by the stride s. oneDNN's
    forward kernels take 3 to 5 times less time for it than its backward ones for 5x5 and larger kernels
    (`scripts/benchmark.py`); the values differ by the order of the sum.
    """

    @staticmethod
    def forward(x, weight, bias, stride, padding, dilation, groups):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, ctx.stride, ctx.padding, ctx.dilation, ctx.groups = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[Optional[torch.Tensor], ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = nn.grad.conv2d_input(x.shape, weight, grad, ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
        if ctx.needs_input_grad[1]:
            height, width = weight.shape[2:]
            grad_weight = sum(
                F.conv2d(image, as_kernel(grad_y), None, 1, ctx.padding, ctx.stride, ctx.groups)[..., :height, :width]
                for image, grad_y in zip(x.split(1), grad)  # (1, C, H, W), (C, H/s, W/s) -> (1, C, k, k)
            ).transpose(0, 1)  # (C, 1, k, k)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None, None, None
