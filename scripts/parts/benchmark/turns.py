"""How candidates are timed: in turns, A B A B ..., each by the clock of what computes."""

import time
from typing import Callable, Sequence

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from .candidates import Candidate


def warm_up(candidate: Candidate, device: torch.device, with_memory: bool) -> None:
    """Calls a candidate for the first time, which compiles what is to be compiled, and once more to see what memory it takes."""
    before = allocated(device) - bytes_of(candidate.run.parts) if with_memory else 0
    started = time.perf_counter()
    candidate.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    candidate.first_seconds = time.perf_counter() - started
    if with_memory:
        candidate.memory_mib = peak_memory(candidate.run, device, before)


def time_in_turns(candidates: Sequence[Candidate], rounds: int, device: torch.device, seconds: float) -> None:
    """Times each once per round, for about `seconds` each; they have been warmed up."""
    repeats = []
    for candidate in candidates:
        elapsed(candidate.run, 1, device)
        repeats.append(max(1, round(seconds / elapsed(candidate.run, 1, device))))
    for _ in range(rounds):
        for candidate, number in zip(candidates, repeats):
            candidate.seconds.append(elapsed(candidate.run, number, device))


def elapsed(run: Callable, number: int, device: torch.device) -> float:
    """Seconds of one call, over `number` calls."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(number):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / number
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    for _ in range(number):
        run()
    return (clock() - started) / number


def peak_memory(run: Callable, device: torch.device, others: int) -> float:
    """MiB of tensors at the fullest moment of a call, parameters, gradients and optimizer state among them.

    Args:
        others: bytes on a GPU that are not the candidate's, as other candidates wait there for their turn.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - others) / 2**20
    if getattr(run.parts[0], "_compiled_call_impl", None):
        return float("nan")  # the tracker sees eager operators only
    tracker = MemTracker()
    tracker.track_external(*run.parts)
    with tracker:
        run()
    return sum(part["Total"] for part in tracker.get_tracker_snapshot("peak").values()) / 2**20


def allocated(device: torch.device) -> int:
    """Bytes of tensors on a GPU; a CPU has no such count, and needs none."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def bytes_of(parts: Sequence) -> int:
    """Of a model's parameters and buffers, before its first call: an optimizer beside it has no state yet."""
    return sum(tensor.nbytes for tensor in (*parts[0].parameters(), *parts[0].buffers()))
