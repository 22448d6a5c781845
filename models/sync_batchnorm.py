"""BatchNorm over the images of all processes, without a moment at which the CPU waits for the GPU."""

from typing import Any, NamedTuple, Optional

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """BatchNorm whose statistics in training are those of all processes' batches, each of one image or more.

    torch's own leaves out processes without images, for which the CPU waits for the GPU in every layer. Here the number of
    values only weighs their statistics. It also works on CPUs, where torch's refuses to.

    It normalises by the process' own batch where there is one process, and by the running statistics in evaluation mode.

    Shapes: (N, C, ...) -> the same.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> "SyncBatchNorm":
        """One with the same values, parameters and buffers as `norm`, which are shared."""
        synchronised = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        synchronised.weight, synchronised.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(synchronised, name, buffer)
        synchronised.training = norm.training
        return synchronised

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm takes (N, C, ...), not {tuple(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        if world_size == 1 or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        momentum, running = 0.0, (None, None)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            running = (self.running_mean, self.running_var)
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        return NormaliseOverProcesses.apply(input, self.weight, self.bias, *running, self.eps, momentum, world_size)


class SyncBatchNormAct(SyncBatchNorm):
    """The same with the dropout and the activation that timm's BatchNormAct2d has in it."""

    @classmethod
    def of(cls, norm: BatchNormAct2d) -> "SyncBatchNormAct":
        synchronised = super().of(norm)
        synchronised.drop, synchronised.act = norm.drop, norm.act
        return synchronised

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


def synchronise_batchnorm(module: nn.Module) -> nn.Module:
    """The module with a `SyncBatchNorm` in place of each BatchNorm; parameters and buffers stay the same tensors."""
    if isinstance(module, _BatchNorm):
        return (SyncBatchNormAct if isinstance(module, BatchNormAct2d) else SyncBatchNorm).of(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise_batchnorm(child))
    return module


class NormaliseOverProcesses(torch.autograd.Function):
    """The normalisation, with one exchange in each direction: 2 C + 1 numbers of each process forward, 2 C backward."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, eps, momentum, world_size):
        x = dense(x)
        kernels = kernels_of(x)
        mean, invstd = kernels.stats(x, eps)
        count = torch.full((1,), x.numel() // x.shape[1], dtype=mean.dtype, device=x.device)
        all_stats = gather(torch.cat([mean, invstd, count]), world_size)  # (P, 2 C + 1)
        means, invstds, counts = all_stats.split([len(mean), len(mean), 1], dim=1)
        counts = counts.flatten()
        mean, invstd = kernels.combine(
            x, means.contiguous(), invstds.contiguous(), running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(x, weight, mean, invstd, counts)
        return kernels.normalise(x, weight, bias, mean, invstd, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, mean, invstd, counts = ctx.saved_tensors
        grad = dense(grad)
        kernels = kernels_of(x)
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        sum_dy, sum_dy_xmu, grad_weight, grad_bias = kernels.backward_sums(
            grad, x, mean, invstd, weight, of_x, of_weight, of_bias
        )
        grad_x = None
        if of_x:
            sums = torch.cat([sum_dy, sum_dy_xmu])
            dist.all_reduce(sums)
            grad_x = kernels.backward(grad, x, mean, invstd, weight, *sums.chunk(2), counts.to(torch.int32))
        # DDP averages the gradients of weight and bias, as all others.
        return grad_x, grad_weight if of_weight else None, grad_bias if of_bias else None, *[None] * 5


def dense(x: torch.Tensor) -> torch.Tensor:
    """Contiguous, but for a map that is so in NHWC."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def gather(values: torch.Tensor, world_size: int) -> torch.Tensor:
    """(n,) of each process -> (P, n)."""
    if dist.get_backend() == "gloo":  # has no gathering into one tensor on all versions and devices
        parts = [torch.empty_like(values) for _ in range(world_size)]
        dist.all_gather(parts, values)
        return torch.stack(parts)
    everything = values.new_empty(world_size * len(values))
    dist.all_gather_into_tensor(everything, values)
    return everything.view(world_size, -1)


# The arithmetic: torch's own kernels on GPUs, the same in plain operators elsewhere


class Kernels(NamedTuple):
    """The five steps; statistics are (C,) each, in float32 for 16-bit maps.

    stats(x, eps) -> mean and 1 / sqrt(variance + eps) of this process' batch.
    combine(x, means, invstds, running_mean, running_var, momentum, eps, counts) -> those of all, (P, C) each to (C,); the
        running statistics are updated.
    normalise(x, weight, bias, mean, invstd, eps) -> the result.
    backward_sums(grad, x, mean, invstd, weight, of_x, of_weight, of_bias) -> sums of grad and grad (x - mean), the gradients
        of weight and bias.
    backward(grad, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts) -> the gradient of x; the sums are over all
        processes.
    """

    stats: Any
    combine: Any
    normalise: Any
    backward_sums: Any
    backward: Any


def kernels_of(x: torch.Tensor) -> Kernels:
    return TORCH_KERNELS if x.is_cuda else PLAIN_KERNELS


def per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(C,) -> (1, C, 1, ...), to go with x."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


def wide(x: torch.Tensor) -> torch.Tensor:
    """float32 of 16 bits; else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def other_axes(x: torch.Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


def stats(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = torch.var_mean(wide(x), other_axes(x), correction=0)
    return mean, (variance + eps).rsqrt()


def combine(
    x: torch.Tensor,
    means: torch.Tensor,
    invstds: torch.Tensor,
    running_mean: Optional[torch.Tensor],
    running_var: Optional[torch.Tensor],
    momentum: float,
    eps: float,
    counts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = counts.sum()
    share = (counts / total)[:, None]  # (P, 1)
    mean = (means * share).sum(0)
    variances = invstds.square().reciprocal() - eps
    variance = ((variances + (means - mean).square()) * share).sum(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * total / (total - 1)).to(running_var.dtype), momentum)
    return mean, (variance + eps).rsqrt()


def normalise(x, weight, bias, mean, invstd, eps: float) -> torch.Tensor:
    y = (wide(x) - per_channel(mean, x)) * per_channel(invstd, x)
    if weight is not None:
        y = y * per_channel(weight, x)
    if bias is not None:
        y = y + per_channel(bias, x)
    return y.to(x.dtype)


def backward_sums(grad, x, mean, invstd, weight, of_x: bool, of_weight: bool, of_bias: bool):
    grad = wide(grad)
    sum_dy = grad.sum(other_axes(x))
    sum_dy_xmu = (grad * (wide(x) - per_channel(mean, x))).sum(other_axes(x))
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy


def backward(grad, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts) -> torch.Tensor:
    total = counts.sum()
    centred = wide(x) - per_channel(mean, x)
    slope = invstd if weight is None else invstd * weight
    through_mean, through_variance = sum_dy / total, invstd.square() * sum_dy_xmu / total
    inner = wide(grad) - per_channel(through_mean, x) - centred * per_channel(through_variance, x)
    return (inner * per_channel(slope, x)).to(x.dtype)


PLAIN_KERNELS = Kernels(stats, combine, normalise, backward_sums, backward)
TORCH_KERNELS = Kernels(
    torch.batch_norm_stats,
    torch.batch_norm_gather_stats_with_counts,
    torch.batch_norm_elemt,
    torch.batch_norm_backward_reduce,
    torch.batch_norm_backward_elemt,
)
