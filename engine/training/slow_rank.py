"""Notices in training that all processes wait for one of them, and names it."""

import statistics
from dataclasses import astuple, dataclass
from typing import Optional, Sequence

import torch

from utils.processes.collectives import gather_rows
from utils.processes.members import Member

SPAN = 20.0  # seconds over which processes are compared
RATIO = 1.5  # of a process' time before the backward pass to the median of all, above which it may be called slow
SHARE = 0.1  # of an update's time, above which a difference from the median is worth a line


@dataclass(frozen=True)
class Spent:
    """Seconds of one process. In a backward pass all wait for the slowest, so a process' own time is what comes before."""

    passed: float = 0.0
    waiting: float = 0.0  # for images
    forward: float = 0.0  # passes

    @property
    def before_backward(self) -> float:
        return self.waiting + self.forward

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(a + b for a, b in zip(astuple(self), astuple(other))))


class SlowRank:
    """How long each process has needed before its backward passes.

    Args:
        members: all processes.
        device: of the exchange.
    """

    def __init__(self, members: Sequence[Member], device: torch.device):
        self.members = members
        self.device = device
        self.start_epoch()

    def start_epoch(self) -> None:
        self.spent = [Spent()] * len(self.members)
        self.updates = 0.0
        self.has_warned = False

    def add(self, spent: Spent, updates: float) -> Optional[str]:
        """Counts what this process has spent on so many updates; all processes call this.

        Returns a warning, at most one in an epoch.
        """
        if len(self.members) == 1:
            return None
        rows = gather_rows(torch.tensor([astuple(spent)], dtype=torch.float64, device=self.device)).tolist()
        self.spent = [before + Spent(*row) for before, row in zip(self.spent, rows)]
        self.updates += updates
        if self.has_warned or self.spent[0].passed < SPAN or not self.updates:
            return None
        warning = describe_slowest(self.spent, self.updates, self.members)
        self.has_warned = warning is not None
        self.spent, self.updates = [Spent()] * len(self.members), 0.0
        return warning


def describe_slowest(spent: Sequence[Spent], updates: float, members: Sequence[Member]) -> Optional[str]:
    """What is to be said of the process that the others wait for; None if there is none."""
    times = [of_rank.before_backward for of_rank in spent]
    slowest = max(range(len(times)), key=times.__getitem__)
    median = statistics.median_low(times)
    passed = spent[slowest].passed
    if times[slowest] < RATIO * median or times[slowest] - median < SHARE * passed:
        return None
    member, of_rank = members[slowest], spent[slowest]
    return (
        f"all wait for rank {slowest} (process {member.pid} on {member.host}): waiting for images and the forward pass take "
        f"{times[slowest] / updates:.3f} s ({times[slowest] / passed:.0%}) of its update of {passed / updates:.3f} s, of which "
        f"images {of_rank.waiting / passed:.0%}; the others' median is {median / updates:.3f} s ({median / passed:.0%}). "
        f"{'Its disk or loading is slow' if of_rank.waiting > of_rank.forward else 'Its processor or GPU is slow, or others use it'}"
    )
