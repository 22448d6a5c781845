"""CUDA graphs (TRAIN.COMPILE_MODE reduce-overhead, max-autotune) beside gradients that several micro-batches add up to."""

import contextlib
from typing import Iterator

import torch
from torch import nn

GRAPH_MODES = ("reduce-overhead", "max-autotune")


@contextlib.contextmanager
def replayed(model: nn.Module, compile_mode: str, keep_gradients: bool) -> Iterator[None]:
    """A forward and backward pass within it may be a graph's, which writes its results to the same memory each time.

    Args:
        compile_mode: of torch.compile; empty: not compiled.
        keep_gradients: another pass follows before the optimizer's step. The gradients, which lie in the graph's memory where
            they are the first to come, move out of it; later ones are added to them there.
    """
    if compile_mode not in GRAPH_MODES:
        yield
        return
    torch.compiler.cudagraph_mark_step_begin()  # nothing of the pass before is read any more
    yield
    if keep_gradients:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
