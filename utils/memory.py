"""How much main memory may still be taken."""

from pathlib import Path

GROUPS = (  # (limit, use) of a container's control group, version 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Bytes: what the machine has left, or the container, whichever is less."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    left = [1024 * int(fields["MemAvailable"].split()[0])]
    for limit, use in GROUPS:
        try:
            left.append(int(Path(limit).read_text()) - int(Path(use).read_text()))
        except (OSError, ValueError):  # no such group, or 'max': no limit
            pass
    return max(min(left), 0)
