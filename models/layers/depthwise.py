"""Depthwise convolution: CPE, FASA's local side, ConvFFN and the downsampling are made of it."""

from typing import Optional

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

HALF = (torch.bfloat16, torch.float16)
MAX_SIDE = 160  # of the output, up to which the weight gradient below was seen to be faster
SMALL_SIDE = 20  # of the input, up to which it was seen to be faster for all images at once


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel by itself, with the names and values of `nn.Conv2d(dim, dim, ..., groups=dim)`.

    Args:
        dim: channels.
        kernel_size: side of the kernel, odd.
        stride: 1, or at most half of the kernel's side.
        residual: DWConv(x) + x, with stride 1.

    Shapes: (B, dim, H, W) -> (B, dim, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, dim: int, kernel_size: int, stride: int = 1, residual: bool = False):
        super().__init__(dim, dim, kernel_size, stride, kernel_size // 2, groups=dim)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return depthwise_conv2d(x, self.weight, self.bias, self.stride, self.padding, self.residual)


@torch.fx.wrap  # it looks at tensors' kinds, which tracing does not know
def depthwise_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor],
    stride: tuple[int, int],
    padding: tuple[int, int],
    residual: bool,
) -> torch.Tensor:
    """The convolution, or its sum with x, as one convolution whose kernel has 1 more in its middle.

    In 16 bits the sum stays a sum: next to the 1, a weight would keep two or three of its digits.
    """
    if torch.jit.is_scripting():  # TorchScript has neither the autograd function below nor the question after autocast
        y = F.conv2d(x, weight, bias, stride, padding, (1, 1), x.shape[1])
        return y + x if residual else y
    autocast = x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type)
    summed = residual and (autocast or x.dtype in HALF)
    if residual and not summed:
        weight = weight + identity_kernel(weight)
    fast = (
        x.device.type == "cpu"
        and x.dtype is torch.float32 is weight.dtype
        and weight.shape[-1] >= 5
        and max(x.shape[2:]) <= MAX_SIDE * stride[0]
        and weight.requires_grad
        and torch.is_grad_enabled()
        and not autocast
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )
    convolve = DepthwiseConvolution.apply if fast else F.conv2d
    y = convolve(x, weight, bias, stride, padding, (1, 1), x.shape[1])
    return y + x if summed else y


def identity_kernel(weight: torch.Tensor) -> torch.Tensor:
    """The kernel (1, 1, k, k) of a weight's kind that leaves a map as it is."""
    return F.pad(weight.new_ones(1, 1, 1, 1), [weight.shape[-1] // 2] * 4)


def as_kernel(image: torch.Tensor) -> torch.Tensor:
    """(C, H, W) -> (C, 1, H, W), contiguous; torch is fast at turning round matrices, but not maps."""
    matrix = image.permute(1, 2, 0).flatten(0, 1)  # (HW, C)
    return matrix.t().contiguous().view(len(image), 1, *image.shape[1:])


def weight_gradient(
    x: torch.Tensor, grad: torch.Tensor, kernel_size: tuple[int, int], padding: tuple[int, int], stride: tuple[int, int]
) -> torch.Tensor:
    """`DepthwiseConvolution`'s: x (B, C, H, W) and grad (B, C, H/s, W/s) -> (1, C, k, k)."""
    (batch_size, channels), (height, width) = x.shape[:2], kernel_size
    if batch_size and max(x.shape[2:]) <= SMALL_SIDE:
        groups = batch_size * channels
        kernels = grad.reshape(groups, 1, *grad.shape[2:])
        by_image = F.conv2d(x.reshape(1, groups, *x.shape[2:]), kernels, None, 1, padding, stride, groups)
        return by_image[..., :height, :width].reshape(batch_size, channels, height, width).sum(0, keepdim=True)
    parts = (
        F.conv2d(image, as_kernel(grad_y), None, 1, padding, stride, channels)[..., :height, :width]
        for image, grad_y in zip(x.split(1), grad)  # (1, C, H, W), (C, H/s, W/s) -> (1, C, k, k)
    )
    return sum(parts, x.new_zeros(1, channels, height, width))


class DepthwiseConvolution(torch.autograd.Function):
    """F.conv2d of a depthwise kernel, with another way to the weight's gradient:

        dL/dW[c, i, j] = sum over b, y, x of dL/dY[b, c, y, x] * X[b, c, s y + i - p, s x + j - p]

    is itself a depthwise convolution of each image X[b] with the kernel dL/dY[b], dilated by the stride s. On an AVX-512
    CPU oneDNN's forward kernels took a third to a fifth of its backward ones' time for it, for 5x5 and larger kernels; the
    values differ by the order of the sum. Small maps of all images go as one image with B C channels: each call has a cost
    of its own, which is most of what a small one takes.
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
            total = weight_gradient(x, grad, weight.shape[2:], ctx.padding, ctx.stride)
            # (C, 1, k, k), strides as DDP wants them
            grad_weight = torch.empty_like(weight).copy_(total.transpose(0, 1))
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None, None, None
