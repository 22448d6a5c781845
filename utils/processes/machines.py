"""Which machines a run spans, and whether their clocks agree: said once at its start."""

import itertools
from typing import Sequence

from .members import Member

SHOWN = 8  # machines that are named
SKEW = 5.0  # seconds: the processes read their clocks within about one second


def describe_machines(members: Sequence[Member]) -> str:
    """One line: each machine with its ranks and the address that gloo uses, and what is the same for all processes."""
    machines = list(ranks_of_machines(members).values())
    named = [_describe(members, ranks, several=len(machines) > 1) for ranks in machines[:SHOWN]]
    more = [f"{len(machines) - SHOWN} more"] if len(machines) > SHOWN else []
    facts = ", ".join(f"{name} {value}" for name, value in members[0].facts.items())
    return f"{len(machines)} machine{'s' if len(machines) > 1 else ''}: {', '.join([*named, *more])}; all have {facts}"


def ranks_of_machines(members: Sequence[Member]) -> dict[str, list[int]]:
    """The ranks on each machine, in the order of the first ones."""
    machines: dict[str, list[int]] = {}
    for rank, member in enumerate(members):
        machines.setdefault(member.machine, []).append(rank)
    return machines


def clock_skew(members: Sequence[Member]) -> str:
    """What is to be said of clocks that are more than `SKEW` seconds from rank 0's, '' if none is."""
    first = members[0].clock
    off = []
    for ranks in ranks_of_machines(members).values():
        member = members[ranks[0]]
        seconds = member.clock - first
        if abs(seconds) > SKEW:
            off.append(
                f"{member.host} (rank {ranks[0]}) is {abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}"
            )
    if not off:
        return ""
    more = f" and {len(off) - SHOWN} more machines" if len(off) > SHOWN else ""
    return (
        f"the clocks differ from that of {members[0].host} (rank 0): {', '.join(off[:SHOWN])}{more}. Training does not "
        "depend on them; times of files and in logs do, so synchronise them (chrony, ntpd)"
    )


def _describe(members: Sequence[Member], ranks: list[int], several: bool) -> str:
    member = members[ranks[0]]
    address = f", {member.address}" if several and member.address else ""
    return f"{member.host} ({'ranks' if len(ranks) > 1 else 'rank'} {_ranges(ranks)}{address})"


def _ranges(ranks: list[int]) -> str:
    """[0, 1, 2, 5] is `0-2,5`."""
    # in a row of numbers without a gap, number minus place is the same
    rows = itertools.groupby(enumerate(ranks), lambda pair: pair[1] - pair[0])
    parts = [[rank for _, rank in row] for _, row in rows]
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
