"""Signs of life of all processes: one that is gone ends the others and is named, one that is behind is named."""

import contextlib
import os
import threading
import time
from typing import Callable, Iterable, Optional

from ..errors import ProcessError, Stopped
from ..signals import StopRequest
from .launch import Launch
from .members import Beat, Members
from .place import Place, current_line
from .silence import FAREWELL, Progress, Silence

INTERVAL = 1.0  # seconds between two signs of life
GRACE = 5.0  # seconds without one after which a process counts as gone, once an exchange with it has failed
STANDING = 10  # signs of life at one place after which they say at which line of the code it is


class Sign:
    """What this process says of itself."""

    def __init__(self, rank: int, stop: StopRequest, place: Place):
        self.rank = rank
        self.stop = stop
        self.place = place
        self.state = "running"
        self.verdict: Optional[list] = None
        self.last: list[int] = []  # position
        self.same = 0  # signs of life with it

    def beat(self, count: int) -> Beat:
        place, position = self.place, self.place.position()
        self.same = self.same + 1 if position == self.last else 0
        self.last = position
        line = current_line() if self.same >= STANDING and not place.may_last else ""
        doing = f"{place.doing} ({line})" if line else place.doing
        return Beat(count, self.state, self.stop.reason, self.verdict, position, doing, place.may_last)


class Watch:
    """A thread that gives a sign of life each second, and looks at those of others: rank 0 at all, they at rank 0's.

    A process that is silent for `timeout` seconds (stopped, swapped out, its machine gone) ends the run on all others,
    also where a collective operation waits for it; if it is on the same machine it is killed, so that the launcher
    ends too.

    Args:
        launch: this process.
        sign: what it says.
        members: all processes; None for one.
        timeout: seconds.
        parent: the process that started this one.
        on_loss: called from the thread with the ProcessError; it does not return.
        on_stall: called from rank 0's thread with what is to be said of processes that are behind.
    """

    def __init__(
        self,
        launch: Launch,
        sign: Sign,
        members: Optional[Members],
        timeout: float,
        parent: int,
        on_loss: Callable[[ProcessError], None],
        on_stall: Callable[[str], None],
    ):
        self.sign = sign
        self.members = members
        self.parent = parent
        self.on_loss = on_loss
        self.on_stall = on_stall
        self.others = range(1, launch.world_size) if launch.rank == 0 else range(1)
        self.closing = threading.Event()
        self.unanswered = 0.0  # seconds since the store last answered
        self.orphaned = False  # the launcher is gone, and the store with it
        self.thread: Optional[threading.Thread] = None
        if members:
            self.silence, self.progress = Silence(members, timeout), Progress(members)

    def start(self) -> None:
        if self.members or has_agent():
            self.thread = threading.Thread(target=self._run, name="peers", daemon=True)
            self.thread.start()
        if self.members and self.sign.rank:
            threading.Thread(target=self._watch_store, args=[self.members], name="peers' store", daemon=True).start()

    def name_lost(self) -> None:
        """After a failed exchange: waits until it is clear which process is gone.

        Raises:
            ProcessError: one is.
            Stopped: one ended with an error of its own, and the launcher now ends this one.

        Returns if all live, so that the failure is another one.
        """
        if self.members is None:
            return
        silence = Silence(self.members, GRACE)
        deadline = time.monotonic() + FAREWELL + 2 * INTERVAL
        others = [rank for rank in range(len(self.members.members)) if rank != self.sign.rank]
        while time.monotonic() < deadline:
            try:
                beats = self.members.read(others)
                lost = silence.lost(beats, INTERVAL / 4)
                failed = any(beat.state == "failed" for beat in beats.values())
            except (RuntimeError, OSError):
                lost, failed = self.members.error(0, "the store that it holds does not answer"), False
            if lost:
                raise lost
            if failed and self.sign.stop:
                raise Stopped  # by the launcher, as another process failed and has said why
            time.sleep(INTERVAL / 4)

    def close(self, good: bool) -> None:
        """Leaves, and tells the others whether after a good end."""
        self.closing.set()
        if self.thread:
            self.thread.join(2 * INTERVAL)
        if self.members is None:
            return
        try:
            self.sign.state = "done" if good else "failed"
            self._beat(self.members, -1)
            if good and self.sign.rank == 0:  # which may hold the store: it leaves last
                deadline = time.monotonic() + GRACE
                while time.monotonic() < deadline and any_runs(self.members, self.others):
                    time.sleep(INTERVAL / 100)
        except (RuntimeError, OSError):
            pass  # the others are gone already

    def _run(self) -> None:
        count = 0
        while not self.closing.wait(INTERVAL):
            if self._launcher_is_gone():
                # Nobody would end these processes, and they hold the run's folder.
                self.sign.stop.make("the launcher's end")
                self.orphaned = True
                return
            if self.members is None:
                continue
            count += 1
            try:
                lost = self._round(self.members, count)
                self.unanswered = 0.0
            except (RuntimeError, OSError):
                if self.closing.wait(INTERVAL):
                    return
                if self._launcher_is_gone():
                    continue
                lost = self.members.error(0, "the store that it holds does not answer")
            if lost and not self.closing.is_set():
                self._end(self.members, lost)
                return

    def _round(self, members: Members, count: int) -> Optional[ProcessError]:
        """One sign of life, and one look at those of others: two calls of the store."""
        mine = self._beat(members, count)
        beats = members.read(self.others)
        # Who is asked to stop tells rank 0, and rank 0 tells all, so that long evaluations end on all of them.
        for beat in beats.values():
            if beat.stop:
                self.sign.stop.make(beat.stop)
        if self.sign.rank == 0:
            behind = self.progress.look({0: mine, **beats}, INTERVAL)
            if behind:
                self.on_stall(behind)
        return self.silence.lost(beats, INTERVAL)

    def _watch_store(self, members: Members) -> None:
        """A call on a store that a stopped process holds does not return; another thread has to see that."""
        while not self.closing.wait(INTERVAL):
            self.unanswered += INTERVAL
            if self.orphaned:
                return
            timeout = self.silence.timeout
            if self.unanswered > timeout + 2 * INTERVAL:
                reason = f"the store that it or its launcher holds has not answered for {timeout:.0f} s"
                self._end(members, members.error(0, reason))
                return

    def _end(self, members: Members, lost: ProcessError) -> None:
        """Ends this process, and the lost one if it is on this machine and only stopped."""
        self.sign.verdict = [lost.rank, str(lost)]
        with contextlib.suppress(RuntimeError, OSError):
            if lost.rank:  # else the store may not answer
                self._beat(members, -1)
        members.kill(lost.rank)
        if self.sign.rank == 0 and len(members.members) > 2:
            time.sleep(2 * INTERVAL)  # the others read the verdict, before the store may end with this process
        self.on_loss(lost)

    def _beat(self, members: Members, count: int) -> Beat:
        beat = self.sign.beat(count)
        members.write(self.sign.rank, beat)
        return beat

    def _launcher_is_gone(self) -> bool:
        return has_agent() and os.getppid() != self.parent


def any_runs(members: Members, ranks: Iterable[int]) -> bool:
    return any(beat.state == "running" for beat in members.read(ranks).values())


def has_agent() -> bool:
    """Whether torchrun's agent has started this process: it is its parent."""
    return "TORCHELASTIC_RUN_ID" in os.environ
