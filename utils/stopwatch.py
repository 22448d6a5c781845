"""The seconds that a device works."""

import contextlib
import time
from typing import Iterator

import torch


class Stopwatch:
    """Adds up how long the device works on what blocks ask of it: on the CPU by the clock, on a GPU, which works behind, by events."""

    def __init__(self, device: torch.device):
        self.device = device
        self.by_clock = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self.events.append((first, last))
        else:
            started = time.perf_counter()
            yield
            self.by_clock += time.perf_counter() - started

    def seconds(self) -> float:
        """Of all blocks so far; waits for a GPU to have done them."""
        if self.events:
            self.events[-1][1].synchronize()
        return self.by_clock + sum(first.elapsed_time(last) for first, last in self.events) / 1000
