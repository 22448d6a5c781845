"""Loading processes: what they are set up with, and what they leave for the process that waits for them.

Each has a line in memory that both see: which file it is reading, or why it ended. A process that is stopped or blocked
cannot be asked.
"""

import contextlib
import mmap
import multiprocessing
import multiprocessing.queues
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, Optional

from torch.utils.data._utils.signal_handling import _remove_worker_pids

from utils.ending import at_end
from utils.errors import one_line
from utils.signals import end_with_parent, ignore_ended_children, ignore_stop_signals

from .patience import patience

LINE = 1024  # bytes of a process' line
SOCKET_PATH = 100  # bytes that a Unix socket's path may have, a little less than systems allow
SOCKET_NAME = 32  # of these, what multiprocessing adds to the folder
GRACE = 1.0  # seconds that loading processes have to end by themselves
STATES = {"T": "which is stopped", "t": "which is stopped", "D": "which waits for the disk", "Z": "which has ended"}

_line: Optional["Line"] = None  # this process' own, if it loads


class Line:
    """A line of text in shared memory."""

    def __init__(self, memory: mmap.mmap, number: int):
        self.memory, self.start = memory, number * LINE

    def write(self, text: str) -> None:
        data = os.fsencode(text)[: LINE - 1]
        self.memory[self.start : self.start + len(data) + 1] = data + b"\0"

    def read(self) -> str:
        return os.fsdecode(self.memory[self.start : self.start + LINE].split(b"\0", 1)[0])


class Lines:
    """Those of all loading processes of a loader; with none of these, that of the process itself."""

    def __init__(self, workers: int):
        self.workers = workers
        self.memory = mmap.mmap(-1, LINE * max(workers, 1))  # forked processes have it in common

    def take(self, number: int) -> None:
        """This process writes to that line from now on."""
        global _line
        _line = Line(self.memory, number)

    def read(self) -> list[str]:
        return [Line(self.memory, number).read() for number in range(max(self.workers, 1))]

    def prepare_worker(self, number: int) -> None:
        """For the DataLoader's `worker_init_fn`."""
        ignore_stop_signals()
        end_with_parent()
        self.take(number)
        use_short_folder()
        queue = multiprocessing.queues.Queue
        queue._on_queue_feeder_error = staticmethod(end_with_reason)  # type: ignore[attr-defined]  # Python's own hook


def reading(name: str) -> None:
    """Notes what this process is about to read."""
    if _line is not None:
        _line.write(name)


@contextlib.contextmanager
def waiting(timeout: float) -> Iterator[None]:
    """While the block opens a data set: an end to a wait for what it notes by `reading`, see `patience`."""
    lines = Lines(0)
    lines.take(0)
    with patience(timeout, lambda: describe_wait(lines, []), sign=lines.read):
        yield


def end_with_reason(error: BaseException, _) -> None:
    """A batch that cannot be sent would be dropped, and waited for without an end: this process ends instead."""
    if _line is not None:
        _line.write(f"ended: {type(error).__name__}: {one_line(error)}")
    os._exit(1)


def use_short_folder() -> None:
    """Batches are sent by sockets in the folder of temporary files (TMPDIR), whose path must be short for that."""
    if len(os.fsencode(tempfile.gettempdir())) + SOCKET_NAME <= SOCKET_PATH:
        return
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(folder, os.W_OK | os.X_OK):
            tempfile.tempdir = folder
            return


def describe_wait(lines: Lines, processes: list) -> tuple[str, str]:
    """The file that is being read, and how; or which loading process gives nothing."""
    names = lines.read()
    if not processes:
        return names[0] or "images", "has been read without an end"
    states = [_state(process.pid) for process in processes]
    odd = [number for number, state in enumerate(states) if state in STATES]
    number = odd[0] if odd else next((number for number, name in enumerate(names) if name), 0)
    about = STATES.get(states[number], "which gives nothing") if number < len(states) else "which gives nothing"
    name = names[number] if number < len(names) else ""
    process = f"loading process {number} ({processes[number].pid})"
    return name or "DATA.NUM_WORKERS", f"is the last that {process} was reading, {about}"


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return "Z"


def end_workers(iterator: Any) -> None:
    """Ends the loading processes of a DataLoader's iterator: what is being read may be finished, for a second.

    torch alone would end them as the iterator goes. But where that is part of a reference cycle, as an error's traceback makes
    one, Python has closed the queues by then through which they are told; and one that waits for a file hears of nothing. For
    each of these torch would wait for 10 s, and it would stay.
    """
    _remove_worker_pids(id(iterator))  # or torch takes a killed one's end for an error
    iterator._worker_pids_set = False
    iterator._workers_done_event.set()
    for queue in iterator._index_queues:
        queue.put(None)
    deadline = time.monotonic() + GRACE
    for worker in iterator._workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    for worker in iterator._workers:
        if worker.is_alive():
            kill_with_children(worker.pid)
    iterator._shutdown_workers()


def end_all() -> None:
    """Ends the loading processes and the commands that they read from, which would keep the run's output open.

    Workers ignore SIGTERM, with which Python ends those that are left when a process ends by an exception.
    """
    ignore_ended_children()
    for process in multiprocessing.active_children():
        parent = process._parent_pid  # type: ignore[attr-defined]  # which Python keeps for itself
        if process.pid and parent == os.getpid():  # a forked process has a list of its parent's, too
            kill_with_children(process.pid)


def kill_with_children(pid: int) -> None:
    """A shell does not pass its end on to the commands it runs."""
    with contextlib.suppress(OSError):  # some have ended meanwhile
        children = [
            child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
        ]
        os.kill(pid, signal.SIGKILL)
        for child in children:
            kill_with_children(int(child))


at_end(end_all)
