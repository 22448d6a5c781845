"""The paper's LN of channels_last maps in Triton: each image is shared among several programs.

A map of B images lies as B rows of N = H W C numbers. `layer_norm` gives a row to one program, so that a GPU with more
processors than images is not full; here a row is cut into parts:

    forward   1. the mean and the sum of squared deviations of each part
              2. those of the image from its parts; y = (x - mean) / std * weight + bias
    backward  1. sums over each part's positions, by channel, of dy and dy x', where x' = (x - mean) / std
              2. dx = (w dy - mean of w dy - x' * mean of w dy x') / std, the means over the image

Numbers are read and written in the map's type and computed in float32; nothing is added in an order that changes.
"""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

BLOCK = 2048  # numbers that a program handles at once
MAX_PARTS = 64  # of an image
PROGRAMS = 1024  # that fill a GPU: some for each of about 130 processors


@triton.jit
def moments_kernel(x, parts, size, chunk, BLOCK: tl.constexpr):
    """Each part's mean, sum of squared deviations and count: parts (B, P, 3)."""
    image, part = tl.program_id(0), tl.program_id(1)
    start = part * chunk
    end = tl.minimum(start + chunk, size)
    x += image.to(tl.int64) * size
    mean, deviations, count = 0.0, 0.0, 0.0
    for offset in range(start, end, BLOCK):
        places = offset + tl.arange(0, BLOCK)
        values = tl.load(x + places, mask=places < end, other=0.0).to(tl.float32)
        number = tl.minimum(end - offset, BLOCK).to(tl.float32)
        block_mean = tl.sum(values, 0) / number
        centred = tl.where(places < end, values - block_mean, 0.0)
        between = block_mean - mean
        total = count + number
        deviations += tl.sum(centred * centred, 0) + between * between * count * number / total
        mean += between * number / total
        count = total
    parts += (image * tl.num_programs(1) + part) * 3
    tl.store(parts, mean)
    tl.store(parts + 1, deviations)
    tl.store(parts + 2, count)


@triton.jit
def normalise_kernel(
    x, y, weight, bias, parts, stats, size, channels, chunk, eps, AFFINE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """y (B, H, W, C), and each image's mean and 1 / std: stats (B, 2)."""
    image, part = tl.program_id(0), tl.program_id(1)
    number = tl.arange(0, PARTS)
    known = number < tl.num_programs(1)
    parts += (image * tl.num_programs(1) + number) * 3
    means = tl.load(parts, mask=known, other=0.0)
    deviations = tl.load(parts + 1, mask=known, other=0.0)
    counts = tl.load(parts + 2, mask=known, other=0.0)
    mean = tl.sum(means * counts, 0) / size
    between = means - mean
    invstd = 1.0 / tl.sqrt(tl.sum(deviations + between * between * counts, 0) / size + eps)
    if part == 0:
        tl.store(stats + 2 * image, mean)
        tl.store(stats + 2 * image + 1, invstd)
    start = part * chunk
    end = tl.minimum(start + chunk, size)
    x += image.to(tl.int64) * size
    y += image.to(tl.int64) * size
    for offset in range(start, end, BLOCK):
        places = offset + tl.arange(0, BLOCK)
        inside = places < end
        values = (tl.load(x + places, mask=inside, other=0.0).to(tl.float32) - mean) * invstd
        if AFFINE:
            channel = places % channels
            values = values * tl.load(weight + channel).to(tl.float32) + tl.load(bias + channel).to(tl.float32)
        tl.store(y + places, values.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sums_kernel(grad, x, stats, sums, rows, channels, chunk, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums of dy and dy x' over each part's positions: sums (B, P, 2, C)."""
    image, part = tl.program_id(0), tl.program_id(1)
    mean, invstd = tl.load(stats + 2 * image), tl.load(stats + 2 * image + 1)
    start = part * chunk
    end = tl.minimum(start + chunk, rows)
    channel = tl.arange(0, CHANNELS)
    x += image.to(tl.int64) * rows * channels
    grad += image.to(tl.int64) * rows * channels
    of_grad = tl.zeros([CHANNELS], tl.float32)
    of_product = tl.zeros([CHANNELS], tl.float32)
    for offset in range(start, end, ROWS):
        row = offset + tl.arange(0, ROWS)
        inside = (row[:, None] < end) & (channel[None, :] < channels)
        places = row[:, None] * channels + channel[None, :]
        gradients = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        of_grad += tl.sum(gradients, 0)
        of_product += tl.sum(gradients * (values - mean) * invstd, 0)
    sums += (image * tl.num_programs(1) + part) * 2 * channels
    tl.store(sums + channel, of_grad, mask=channel < channels)
    tl.store(sums + channels + channel, of_product, mask=channel < channels)


@triton.jit
def input_gradient_kernel(
    grad, x, grad_x, weight, stats, terms, size, channels, chunk, AFFINE: tl.constexpr, BLOCK: tl.constexpr
):
    """dx (B, H, W, C), from each image's means of w dy and w dy x': terms (B, 2)."""
    image, part = tl.program_id(0), tl.program_id(1)
    mean, invstd = tl.load(stats + 2 * image), tl.load(stats + 2 * image + 1)
    of_grad, of_product = tl.load(terms + 2 * image), tl.load(terms + 2 * image + 1)
    start = part * chunk
    end = tl.minimum(start + chunk, size)
    x += image.to(tl.int64) * size
    grad += image.to(tl.int64) * size
    grad_x += image.to(tl.int64) * size
    for offset in range(start, end, BLOCK):
        places = offset + tl.arange(0, BLOCK)
        inside = places < end
        gradients = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
        normed = (tl.load(x + places, mask=inside, other=0.0).to(tl.float32) - mean) * invstd
        if AFFINE:
            gradients *= tl.load(weight + places % channels).to(tl.float32)
        result = (gradients - of_grad - normed * of_product) * invstd
        tl.store(grad_x + places, result.to(grad_x.dtype.element_ty), mask=inside)


def split(batch: int, length: int, block: int) -> tuple[int, int]:
    """In how many parts an image of `length` numbers (or rows) is handled, and how long they are, in whole blocks."""
    wanted = min(max(PROGRAMS // batch, 1), MAX_PARTS, triton.cdiv(length, block))
    chunk = triton.cdiv(triton.cdiv(length, wanted), block) * block
    return triton.cdiv(length, chunk), chunk


class GroupNorm(torch.autograd.Function):
    """See `group_norm`."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps: float, dtype: torch.dtype):
        batch, channels, height, width = x.shape
        size = channels * height * width
        number, chunk = split(batch, size, BLOCK)
        parts = torch.empty(batch, number, 3, dtype=torch.float32, device=x.device)
        stats = torch.empty(batch, 2, dtype=torch.float32, device=x.device)
        y = torch.empty_like(x, dtype=dtype)
        affine = weight is not None
        with torch.cuda.device_of(x):
            moments_kernel[batch, number](x, parts, size, chunk, BLOCK=BLOCK)
            normalise_kernel[batch, number](
                x, y, weight if affine else x, bias if affine else x, parts, stats, size, channels, chunk, eps,
                AFFINE=affine, PARTS=triton.next_power_of_2(number), BLOCK=BLOCK,
            )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, stats)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        x, weight, bias, stats = ctx.saved_tensors
        batch, channels, height, width = x.shape
        rows, size, affine = height * width, channels * height * width, weight is not None
        grad = grad.contiguous(memory_format=torch.channels_last)
        columns = triton.next_power_of_2(channels)
        tile = max(BLOCK // columns, 1)
        number, chunk = split(batch, rows, tile)
        sums = torch.empty(batch, number, 2, channels, dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(x)
        with torch.cuda.device_of(x):
            sums_kernel[batch, number](grad, x, stats, sums, rows, channels, chunk, ROWS=tile, CHANNELS=columns)
            of_images = sums.sum(1)  # (B, 2, C)
            terms = (of_images * weight if affine else of_images).sum(2) / size
            number, chunk = split(batch, size, BLOCK)
            input_gradient_kernel[batch, number](
                grad, x, grad_x, weight if affine else x, stats, terms, size, channels, chunk, AFFINE=affine, BLOCK=BLOCK
            )  # fmt: skip
        if not affine:
            return grad_x, None, None, None, None
        of_bias, of_weight = of_images.sum(0)
        return grad_x, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None


def group_norm(
    x: torch.Tensor, weight: Optional[torch.Tensor], bias: Optional[torch.Tensor], eps: float, dtype: torch.dtype
) -> torch.Tensor:
    """GroupNorm with one group of a channels_last map (B, C, H, W), in `dtype`; with weight and bias, or neither.

    The map has at least one image and fewer than 2^31 numbers in each.
    """
    return GroupNorm.apply(x, weight, bias, eps, dtype)
