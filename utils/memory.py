"""How much main memory is taken, and how much may still be."""

import contextlib
from pathlib import Path

GROUPS = (  # a container's control group, version 2 and 1: (limit, use, what the use consists of, prefix of its names)
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", ""),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_",
    ),
)


def available_memory() -> int:
    """Bytes: what the machine has left, or the container, whichever is less."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    left = [1024 * int(fields["MemAvailable"].split()[0])]
    for limit, use, parts, prefix in GROUPS:
        try:
            used = int(Path(use).read_text())
            amounts = dict(line.split() for line in Path(parts).read_text().splitlines())
            # Files that were read stay in memory until it is needed, and count as used.
            used -= sum(int(amounts.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))
            left.append(int(Path(limit).read_text()) - used)
        except (OSError, ValueError):  # no such group, or 'max': no limit
            pass
    return max(min(left), 0)


def resident_memory() -> int:
    """Bytes that this process has in main memory now."""
    return _of_this_process("VmRSS")


def peak_memory() -> int:
    """The most bytes that this process has had in main memory, since `forget_peak` where the system lets it forget."""
    return _of_this_process("VmHWM")


def forget_peak() -> None:
    """`peak_memory` counts anew. Some containers do not let a process do this: there it stays the most so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5)


def _of_this_process(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
