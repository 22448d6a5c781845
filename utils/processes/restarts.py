"""torchrun's restarts (`--max_restarts`): which ends of a process they are for."""

import contextlib
import os
import signal
from pathlib import Path


def refuse_restart(launcher: int) -> None:
    """Tells the launcher to end instead of starting all processes again.

    Its agent restarts whatever exits with another status than 0. What it obeys is a signal: it passes SIGTERM on to its
    processes, waits for them, and exits with 1.
    """
    if restarts_left() and os.getppid() == launcher and _handles(launcher, signal.SIGTERM):
        with contextlib.suppress(OSError):
            os.kill(launcher, signal.SIGTERM)


def restarts_left() -> int:
    """How often the launcher would start this process again; 0 without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0
    try:
        most, done = (int(os.environ[f"TORCHELASTIC_{name}"]) for name in ("MAX_RESTARTS", "RESTART_COUNT"))
    except (KeyError, ValueError):
        return 0
    return max(most - done, 0)


def _handles(pid: int, number: int) -> bool:
    """Whether a process of this machine handles the signal, as the agent does; else it may be a shell between."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)
