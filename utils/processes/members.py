"""The processes of a run as the others know them: where they are, and what they last said."""

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any, Iterable, NamedTuple, Optional, Sequence

import torch.distributed as dist

from ..errors import ProcessError

START_AGAIN = "start the same command again, it goes on from the last checkpoint"


class Member(NamedTuple):
    """A process, as it introduces itself at the start."""

    host: str
    pid: int
    started: str  # as the kernel counts it: a number is given to another process one day
    machine: str
    facts: dict[str, str]  # what must be the same for all, see sameness.py
    clock: float = 0.0  # seconds since 1970, when all processes had just met
    address: str = ""  # the interface and address that gloo tells the others, as far as known


class Beat(NamedTuple):
    """A sign of life."""

    number: int  # in turn; -1 for one out of turn
    state: str  # "running", "done" or "failed"
    stop: str  # the signal that asked this process to stop, if one did
    verdict: Optional[Sequence[Any]]  # [rank, what to say] of a process that this one found gone
    position: Sequence[int] = (0, 0)  # see place.py
    doing: str = ""
    may_last: bool = True


class Members:
    """All processes of a run, and their signs of life in the store through which they met.

    Args:
        store: of this part of the run alone.
        members: by rank.
    """

    def __init__(self, store: dist.Store, members: Sequence[Member]):
        self.store = store
        self.members = list(members)

    def write(self, rank: int, beat: Beat) -> None:
        self.store.set(f"beat{rank}", json.dumps(beat))

    def read(self, ranks: Iterable[int]) -> dict[int, Beat]:
        """The last sign of life of each, by one call of the store."""
        ranks = list(ranks)
        beats = self.store.multi_get([f"beat{rank}" for rank in ranks])
        return {rank: Beat(*json.loads(beat)) for rank, beat in zip(ranks, beats)}

    def name(self, rank: int) -> str:
        return f"rank {rank} (process {self.members[rank].pid} on {self.members[rank].host})"

    def error(self, rank: int, reason: str) -> ProcessError:
        return ProcessError(f"{self.name(rank)}: {reason}; {START_AGAIN}", rank)

    def is_dead(self, rank: int) -> bool:
        """Whether it has ended, as far as this machine can see."""
        member = self.members[rank]
        return member.machine == this_machine() and member.started != when_started(member.pid)

    def kill(self, rank: int) -> None:
        """Ends a process of this machine, which may only be stopped: its launcher would wait for it."""
        member = self.members[rank]
        if member.machine == this_machine() and member.started == when_started(member.pid):
            try:
                os.kill(member.pid, signal.SIGKILL)
            except OSError:
                pass  # gone meanwhile, or somebody else's


def this_process(facts: dict[str, str], address: str = "") -> Member:
    host, pid = socket.gethostname(), os.getpid()
    return Member(host, pid, when_started(pid), this_machine(), facts, address=address)


def when_started(pid: int) -> str:
    """When a process of this machine began, as the kernel counts it; '' if there is none or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def this_machine() -> str:
    """The same for processes that see one another by their numbers: one boot of a machine, one container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"  # nobody else's
