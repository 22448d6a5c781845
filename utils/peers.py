"""The processes of a run to one another: which of them are alive, and what they agree on between two steps."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Iterable, Optional, Sequence

import torch
import torch.distributed as dist

from .distributed import Launch
from .errors import ProcessError, Stopped
from .signals import StopRequest

INTERVAL = 1.0  # seconds between two signs of life
GRACE = 5.0  # seconds without one after which a process counts as gone, once an exchange with it has failed
FAREWELL = 10.0  # seconds that the others wait for the launcher after a process ended with an error


class Peers:
    """Signs of life of all processes, kept in the store through which they met, and small exchanges on the CPU.

    A thread of each process writes a count every second. Rank 0 watches all, the others watch rank 0.
    A process that is silent for `timeout` seconds (stopped, swapped out, its machine gone) ends the run on all others,
    also where a collective operation waits for it; if it is on the same machine it is killed, so that the launcher
    ends too.

    Args:
        launch: this process.
        parent: the process that started it.
        store: as `torch.distributed.rendezvous` gives it; None for one process.
        timeout: seconds.
        on_loss: called from the thread with the ProcessError; it does not return.

    Raises:
        ProcessError: a process ended before all had met.
    """

    def __init__(
        self,
        launch: Launch,
        parent: int = 0,
        store: Optional[dist.Store] = None,
        timeout: float = 60.0,
        on_loss: Callable[[ProcessError], None] = lambda error: None,
    ):
        self.launch = launch
        self.timeout = timeout
        self.on_loss = on_loss
        self.stop = StopRequest()
        self.parent = parent
        self.launched = "TORCHELASTIC_RUN_ID" in os.environ  # its agent is the parent process
        self.closing = threading.Event()
        self.state = "running"
        # rank: its last beat, and for how many seconds of this thread it was the last
        self.silence: dict[int, list] = {}
        self.unanswered = 0.0  # seconds since the store last answered
        self.orphaned = False  # the launcher is gone, and the store with it
        self.verdict: Optional[list] = None  # [rank, what to say] of a process that this one found gone
        self.pending: Optional[tuple[Any, torch.Tensor]] = None
        self.store = self.group = self.thread = None
        if store is not None:
            try:
                self._meet(store)
            except RuntimeError as error:
                raise ProcessError(
                    f"the processes did not meet ({' '.join(str(error).split())[:200]}); one has ended, start all again"
                ) from error
            self.watched = range(1, launch.world_size) if launch.rank == 0 else range(1)
        if store is not None or self.launched:
            self.thread = threading.Thread(target=self._run, name="peers", daemon=True)
            self.thread.start()
        if store is not None and launch.rank:
            threading.Thread(target=self._watch_store, name="peers' store", daemon=True).start()

    def _meet(self, store: dist.Store) -> None:
        self.group = dist.new_group(backend="gloo")
        self.store = dist.PrefixStore("peers", store.clone())  # of its own: calls on one store wait for one another
        self.store.set_timeout(timedelta(seconds=self.timeout))
        me = [socket.gethostname(), os.getpid(), _started(os.getpid()), _machine()]
        self.store.set(f"who{self.launch.rank}", json.dumps(me))
        self._beat(0)
        dist.barrier(self.group)  # every process' entries are there
        self.who = [json.loads(self.store.get(f"who{rank}")) for rank in range(self.launch.world_size)]

    # Exchanges

    def agree(self, flags: Sequence[bool], now: bool = False) -> list[bool]:
        """For each flag, whether any process raised it. All processes call this equally often.

        With several processes the answer is about the call before, so that no step waits for it; with `now` it is
        about this one and the one before.
        """
        if self.group is None:
            return [bool(flag) for flag in flags]
        answer = [False] * len(flags)
        if self.pending:
            work, values = self.pending
            work.wait()
            answer = [bool(value) for value in values.tolist()]
        values = torch.tensor([bool(flag) for flag in flags], dtype=torch.int32)
        self.pending = (dist.all_reduce(values, dist.ReduceOp.MAX, self.group, async_op=True), values)
        if now:
            work, values = self.pending
            work.wait()
            self.pending = None
            answer = [a or bool(value) for a, value in zip(answer, values.tolist())]
        return answer

    def gather(self, value: Any) -> list[Any]:
        """Every process' small plain value, by rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.launch.world_size
        dist.all_gather_object(values, value, self.group)
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's small plain value."""
        values = [value]
        if self.group is not None:
            dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    # Life and death

    def name_lost(self) -> None:
        """After a failed exchange: waits until it is clear which process is gone.

        Raises:
            ProcessError: one is.
            Stopped: one ended with an error of its own, and the launcher now ends this one.

        Returns if all live, so that the failure is another one.
        """
        silence: dict[int, list] = {}
        deadline = time.monotonic() + FAREWELL + 2 * INTERVAL
        while self.store is not None and time.monotonic() < deadline:
            try:
                lost = self._lost(silence, INTERVAL / 4, GRACE, range(self.launch.world_size))
                failed = any(self._read(rank)[1] == "failed" for rank in range(self.launch.world_size))
            except (RuntimeError, OSError):
                lost = self._error(0, "the store that it holds does not answer")
            if lost:
                raise lost
            if failed and self.stop:
                raise Stopped  # by the launcher, as another process failed and has said why
            time.sleep(INTERVAL / 4)

    def meet(self) -> None:
        """Waits for all processes."""
        if self.group is not None:
            if self.pending:
                self.pending[0].wait()
                self.pending = None
            dist.barrier(self.group)

    def close(self, good: bool) -> None:
        """Leaves, and tells the others whether after a good end."""
        self.closing.set()
        if self.thread:
            self.thread.join(2 * INTERVAL)
        if self.store is None:
            return
        try:
            self.state = "done" if good else "failed"
            self._beat(-1)
            if good and self.launch.rank == 0:  # which may hold the store: it leaves last
                deadline = time.monotonic() + GRACE
                while time.monotonic() < deadline and any(self._read(rank)[1] == "running" for rank in self.watched):
                    time.sleep(INTERVAL / 100)
        except (RuntimeError, OSError):
            pass  # the others are gone already

    def _run(self) -> None:
        count = 0
        while not self.closing.wait(INTERVAL):
            if self.launched and os.getppid() != self.parent:
                # The launcher was killed. Nobody would end these processes, and they hold the run's folder.
                self.stop.make("the launcher's end")
                self.orphaned = True
                return
            count += 1
            lost = None
            try:
                if self.store is not None:
                    self._beat(count)
                    self._pass_on_stop()
                    lost = self._lost(self.silence, INTERVAL, self.timeout, self.watched)
                    self.unanswered = 0.0
            except (RuntimeError, OSError):
                if self.closing.wait(INTERVAL):
                    return
                if self.launched and os.getppid() != self.parent:
                    continue
                lost = self._error(0, "the store that it holds does not answer")
            if lost and not self.closing.is_set():
                self._end(lost)
                return

    def _watch_store(self) -> None:
        """A call on a store that a stopped process holds does not return; another thread has to see that."""
        while not self.closing.wait(INTERVAL):
            self.unanswered += INTERVAL
            if self.orphaned:
                return
            if self.unanswered > self.timeout + 2 * INTERVAL:
                self._end(
                    self._error(0, f"the store that it or its launcher holds has not answered for {self.timeout:.0f} s")
                )
                return

    def _end(self, lost: ProcessError) -> None:
        """Ends this process, and the lost one if it is on this machine and only stopped: its launcher would wait for it."""
        self.verdict = [lost.rank, str(lost)]
        with contextlib.suppress(RuntimeError, OSError):
            if lost.rank:  # else the store may not answer
                self._beat(-1)
        _, pid, started, machine = self.who[lost.rank]
        if machine == _machine() and started == _started(pid):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if self.launch.rank == 0 and self.launch.world_size > 2:
            time.sleep(2 * INTERVAL)  # the others read the verdict, before the store may end with this process
        self.on_loss(lost)

    def _beat(self, count: int) -> None:
        self.store.set(f"beat{self.launch.rank}", json.dumps([count, self.state, self.stop.reason, self.verdict]))

    def _read(self, rank: int) -> list[Any]:
        return json.loads(self.store.get(f"beat{rank}"))

    def _pass_on_stop(self) -> None:
        """Who is asked to stop tells rank 0, and rank 0 tells all, so that long evaluations end on all of them."""
        for rank in self.watched:
            reason = self._read(rank)[2]
            if reason:
                self.stop.make(reason)

    def _lost(
        self, silence: dict[int, list], passed: float, timeout: float, ranks: Iterable[int]
    ) -> Optional[ProcessError]:
        """The first of these processes that is gone.

        Silence is counted in rounds of `passed` seconds, not by the clock: after a stop and a continuation of all
        (Ctrl-Z and fg) nobody takes the others for dead.
        """
        for rank in ranks:
            if rank == self.launch.rank:
                continue
            *beat, _, verdict = self._read(rank)
            if verdict:
                return ProcessError(verdict[1], verdict[0])
            if beat[1] == "done":
                continue
            last = silence.setdefault(rank, [beat, 0.0])
            last[:] = [beat, last[1] + passed if last[0] == beat else 0.0]
            if beat[1] == "failed":
                if last[1] > FAREWELL:
                    return self._error(rank, "it ended with an error of its own, see its line")
            elif self._is_dead(rank):
                return self._error(rank, "it was killed")
            elif last[1] > timeout:
                return self._error(rank, f"no sign of life for {last[1]:.0f} s, it is stopped or its machine is gone")
        return None

    def _is_dead(self, rank: int) -> bool:
        _, pid, started, machine = self.who[rank]
        return machine == _machine() and started != _started(pid)

    def _error(self, rank: int, reason: str) -> ProcessError:
        host, pid, *_ = self.who[rank]
        return ProcessError(
            f"rank {rank} (process {pid} on {host}): {reason}; start the same command again, it goes on from the last checkpoint",
            rank,
        )


def _started(pid: int) -> str:
    """When a process of this machine began, as the kernel counts it; '' if there is none or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _machine() -> str:
    """The same for processes that see one another by their numbers: one boot of a machine, one container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"  # nobody else's
