"""Activation checkpointing that leaves BatchNorm's running statistics exact."""

import contextlib
from typing import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def frozen_running_stats(module: nn.Module):
    """Within it, BatchNorm layers in training mode normalise by the batch and leave their buffers as they are.

    Means and variances stay by a momentum of 0. The counter has a copy count in its place: torch's SyncBatchNorm refuses to
    do without one.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, kept):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked


def checkpointed(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """function(x), a method of `module`, computed again in the backward pass instead of kept.

    The second forward pass would update running means and variances once more; it must not, so that a run with
    checkpointing ends with the buffers of a run without.
    """
    contexts = lambda: (contextlib.nullcontext(), frozen_running_stats(module))  # noqa: E731
    return checkpoint(function, x, use_reentrant=False, context_fn=contexts)
