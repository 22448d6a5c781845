"""No endless waiting for images: a limit on silence, and on how long a request to stop waits for the next batch.

What blocks a read cannot be asked. A timer's signal looks at the wait once a second, in the main thread, where it ends
any read that Python makes. It counts its own rounds, not the clock: after Ctrl-Z and `fg` nothing has run out.
"""

import contextlib
import signal
import threading
from typing import Any, Callable, Iterator

from utils.errors import OutputError, Stopped
from utils.signals import requested_stop

TICK = 1.0  # seconds of a round
GRACE = 5  # rounds in which a batch may still come after a request to stop


class WaitEnded(BaseException):
    """Raised in the middle of a read; not an Exception, which the readers of damaged files catch."""


@contextlib.contextmanager
def patience(
    timeout: float,
    describe: Callable[[], tuple[str, str]],
    sign: Callable[[], Any] = lambda: None,
) -> Iterator[None]:
    """Ends the block's wait when it has lasted `timeout` seconds, or some seconds after a request to stop.

    In another thread than the main one, which gets the signals, it does nothing.

    Args:
        timeout: 0: only a request to stop ends it.
        describe: what is waited for, a file, and how; asked only when the wait is ended.
        sign: what changes while the work goes on; each change starts the time anew.

    Raises:
        OutputError: after `timeout`.
        Stopped: after a request to stop, which the other processes of the run need not have met.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    rounds = asked = 0
    seen = sign()

    def look(number, frame):
        nonlocal rounds, asked, seen
        before, seen = seen, sign()
        rounds = rounds + 1 if seen == before else 0
        asked += bool(requested_stop())
        if asked > GRACE or 0 < timeout <= rounds * TICK:
            raise WaitEnded

    previous = signal.signal(signal.SIGALRM, look)
    outer = signal.setitimer(signal.ITIMER_REAL, TICK, TICK)  # of a wait around this one
    try:
        yield
    except WaitEnded as error:
        signal.setitimer(signal.ITIMER_REAL, 0)  # or it would end what follows, too
        where, how = describe()
        if asked > GRACE:
            raise stopped_while(f"{where}: {how}") from error
        remedy = "look at the disk or the network, or raise DATA.TIMEOUT, and start the same command again"
        raise OutputError(where, f"{how}, for {timeout:g} s", remedy) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
        signal.signal(signal.SIGALRM, previous)


def stopped_while(what: str) -> Stopped:
    """A stop at no step that the processes agreed on."""
    stopped = Stopped(f"stopped by {requested_stop()} while waiting for images: {what}; start the same command again")
    stopped.together = False
    return stopped
