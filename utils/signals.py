"""Signals with which a scheduler or a user asks a run to stop."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from typing import Iterator, Optional

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


_request: Optional[StopRequest] = None  # a process has one set of handlers: those of the innermost `stop_signals`


def requested_stop() -> str:
    """The signal that has asked this process to stop, '' if none; of the `stop_signals` block that is running."""
    return _request.reason if _request else ""


@contextlib.contextmanager
def stop_signals(request: StopRequest) -> Iterator[None]:
    """While the block runs, the signals only make the request; a second Ctrl-C ends the process at once.

    In another thread than the main one, which gets the signals, they do as before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number, frame):
        if number == signal.SIGINT and request.reason == "SIGINT":
            raise KeyboardInterrupt
        request.make(signal.Signals(number).name)

    global _request
    outer, _request = _request, request
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        _request = outer
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_stop_signals() -> None:
    """For worker processes: a scheduler signals all processes of a job, and the workers must serve until the save."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def ignore_ended_children() -> None:
    """From here on the end of a loading process is no error any more, which torch's handler would raise wherever this
    process is: while it says what has happened, too.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def end_with_parent() -> None:
    """For worker processes: the kernel kills this one when the process that started it ends, however that happens.

    A worker inherits the connections of its process. While it lives, a killed process' peers see them as open and wait,
    and DataLoader's own look at the parent, every 5 s, never ends a worker whose parent died before its first look.
    To the kernel the parent is the thread that forked; that has to be one that lives as long as its process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, see prctl(2)
    parent = multiprocessing.parent_process()
    if parent and os.getppid() != parent.pid:  # it ended before that
        os._exit(1)
