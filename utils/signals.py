"""Signals with which a scheduler or a user asks a run to stop."""

import contextlib
import signal
from typing import Iterator

# Slurm, Kubernetes and launchers send these before they kill; SIGINT is Ctrl-C.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether this process, or another one of the run, was asked to stop. It is looked at between two steps."""

    def __init__(self):
        self.reason = ""

    def __bool__(self) -> bool:
        return bool(self.reason)

    def make(self, reason: str) -> None:
        """Asks to stop; a second request changes nothing, so a save is never cut short by it."""
        self.reason = self.reason or reason


@contextlib.contextmanager
def stop_signals(request: StopRequest) -> Iterator[None]:
    """While the block runs, the signals only make the request; a second Ctrl-C ends the process at once."""

    def handle(number, frame):
        if number == signal.SIGINT and request.reason == "SIGINT":
            raise KeyboardInterrupt
        request.make(signal.Signals(number).name)

    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_stop_signals() -> None:
    """For worker processes: a scheduler signals all processes of a job, and the workers must serve until the save."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
