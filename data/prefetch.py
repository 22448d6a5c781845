"""Batches on their way to the device while it computes."""

import functools
from typing import Any, Callable, Iterator, Sequence

import torch

from utils.device import tensors_of


@functools.cache
def copying_stream(device: torch.device) -> "torch.cuda.Stream":
    """One for each device and all epochs: memory that is freed on a stream stays that stream's."""
    return torch.cuda.Stream(device)


class Prefetcher:
    """An iterator over finished batches.

    On CUDA the next batch is copied and finished on a stream of its own while the device computes on the present one;
    pinned memory is needed for that. On the CPU each batch is finished when it is asked for.

    Args:
        batches: what a loader gives.
        finish: batch -> tensors on the device, at any depth, and more, see `data.batches.Finish`.
        device: that device.
    """

    def __init__(self, batches: Iterator[Any], finish: Callable[[Any], Sequence[Any]], device: torch.device):
        self.batches = batches
        self.finish = finish
        self.device = device
        self.ahead = self._cuda() if device.type == "cuda" else map(finish, batches)

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> Sequence[Any]:
        return next(self.ahead)

    def _cuda(self) -> Iterator[Sequence[Any]]:
        stream = copying_stream(self.device)

        def next_batch():
            with torch.cuda.stream(stream):
                return next(finished, None)

        finished = map(self.finish, self.batches)
        coming = next_batch()
        while coming is not None:
            present = coming
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(stream)  # before the next batch is put there, so that it waits for this one alone
            for tensor in tensors_of(present):
                tensor.record_stream(computing)  # or its memory could be taken for a coming batch while it is in use
            coming = next_batch()
            yield present
