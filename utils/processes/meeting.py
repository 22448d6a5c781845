"""How the processes of one start find each other in a store that may outlive them."""

import json
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

INTERVAL = 0.02  # seconds between two looks into the store, for up to 32 processes; all of them ask one store


def meet(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """Waits for all processes of this start; returns a part of `store` that no other start reads or writes.

    torchrun's agent keeps one store for all attempts and all rounds of its rendezvous, with what former processes wrote
    into it: to read their addresses is to wait for the dead. No number that the launcher gives tells the starts apart
    on all machines (after a change of members its count of restarts stays as it was, and an agent that has just
    joined counts from 0). So each process draws a name that nobody had before, and adds it to a list. Rank 0's is the
    name of the start; it answers the others by their names, and who has answered in turn is alive and belongs to it.

    Rank 0 makes a few calls a round whatever the number of processes, the others one.

    Raises:
        RuntimeError: a process has not come in time, or the store is gone.
    """
    name = uuid.uuid4().hex
    table = dist.PrefixStore(f"meeting/{world_size}", store)
    deadline = time.monotonic() + timeout.total_seconds()
    start = _gather(table, name, world_size, deadline) if rank == 0 else _join(table, name, rank, world_size, deadline)
    return dist.PrefixStore(f"start/{start}", store)


def _gather(table: dist.Store, start: str, world_size: int, deadline: float) -> str:
    """Rank 0's side: answers every process that is there until all of them have joined its start."""
    answered: set[str] = set()
    joined: dict[int, str] = {}
    while len(joined) < world_size - 1:
        # names of processes that are gone are answered too, and then nobody joins
        here = dict(entry.split(" ") for entry in _entries(table, "here"))
        new = [name for name in here if name not in answered]
        if new:
            table.multi_set([f"start/{name}" for name in new], [start] * len(new))  # type: ignore[attr-defined]  # its stubs lack it
            answered.update(new)
        joined = {int(here[name]): name for name in _entries(table, f"joined/{start}")}
        if len(joined) < world_size - 1:
            missing = ", ".join(str(rank) for rank in range(1, world_size) if rank not in joined)
            _wait(deadline, world_size, f"rank {missing} did not come")
    table.set(f"members/{start}", json.dumps(sorted(joined.values())))
    return start


def _join(table: dist.Store, name: str, rank: int, world_size: int, deadline: float) -> str:
    """The side of the others: joins rank 0's start, or that of a newer rank 0, until it has all its members."""
    table.append("here", f"{name} {rank};")  # type: ignore[attr-defined]  # its stubs lack it
    start = ""
    while True:
        answer = _read(table, f"start/{name}")
        if answer != start:
            start = answer
            table.append(f"joined/{start}", f"{name};")  # type: ignore[attr-defined]  # its stubs lack it
        if start and name in json.loads(_read(table, f"members/{start}") or "[]"):
            return start
        _wait(deadline, world_size, "rank 0 did not come" if not start else "others did not come")


def _entries(table: dist.Store, key: str) -> list[str]:
    return _read(table, key).split(";")[:-1]


def _read(table: dist.Store, key: str) -> str:
    """'' if there is none; the store's own `get` would wait for it."""
    return table.get(key).decode() if table.check([key]) else ""


def _wait(deadline: float, world_size: int, reason: str) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(reason)
    time.sleep(INTERVAL * max(1.0, world_size / 32))
