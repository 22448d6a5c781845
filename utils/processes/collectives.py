"""Sums, rows of tensors and plain values over all processes; without a process group, those of this one."""

from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import nn


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum over all processes; `values` itself is left alone."""
    total = values.clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def min_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise minimum over all processes; `values` itself is left alone."""
    smallest = values.clone()
    if dist.is_initialized():
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return smallest


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """The rows of all processes' values, those of rank 0 first; each may have another number of them."""
    if not dist.is_initialized():
        return values
    counts = values.new_zeros(dist.get_world_size(), dtype=torch.int64)
    dist.all_gather_into_tensor(counts, counts.new_tensor([len(values)]))
    most = int(counts.max())
    padded = values.new_zeros(most, *values.shape[1:])
    padded[: len(values)] = values
    rows = values.new_empty(len(counts) * most, *values.shape[1:])
    dist.all_gather_into_tensor(rows, padded)
    return torch.cat([part[:count] for part, count in zip(rows.split(most), counts.tolist())])


def computed_by_first(values: list[Any], compute: Callable[[list[Any]], Any]) -> Any:
    """What rank 0 computes of all processes' plain values, those of rank 0 first; every process calls this and has the result."""
    if not dist.is_initialized():
        return compute(values)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    result = [compute([value for part in parts for value in part]) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(result, src=0)
    return result[0]


def broadcast_buffers(module: nn.Module) -> None:
    """Gives every process rank 0's buffers (BatchNorm statistics), so that all evaluate one and the same model."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
