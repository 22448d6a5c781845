"""How a program ends: with one line for its error, and an exit status."""

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Callable, NoReturn

from .errors import OutputError, Stopped, UserError, printable
from .processes.launch import stated_rank
from .processes.restarts import refuse_restart, restarts_left

LAUNCHER = os.getppid()  # if there is one; taken early, before it can be gone
_reporting = threading.Lock()
_at_end: list[Callable[[], None]] = []


def at_end(function: Callable[[], None]) -> None:
    """The function is called when this process ends, by `leave` too."""
    atexit.register(function)
    _at_end.append(function)


def run_rank(main: Callable[[], None]) -> NoReturn:
    """`main` as one process of a run, which others may wait for: its errors as one line, and an exit status."""
    try:
        main()
        # Python's own end would unwind threads that wait in torch.distributed's C++ code, which can abort the process
        leave(0)
    except UserError as error:
        report(error)
    except Stopped as stopped:
        if str(stopped):
            say(str(stopped))
        # SIGTERM is also how the launcher ends its processes to restart them
        if stopped.reason in ("SIGUSR1", "SIGINT"):
            refuse_restart(LAUNCHER)
        leave(stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)


def report(error: UserError) -> NoReturn:
    """Prints the error as the one last line and exits with its status.

    When every process meets the same error, rank 0 says it and its exit makes the launcher end the others, which wait
    here for that. An error that only another rank meets is said by that rank.
    """
    _let_others_speak(error)
    if not _reporting.acquire(blocking=False):  # another thread of this process says it and exits
        time.sleep(60)
    line = f"error: {printable(error)}"
    if not error.retry and restarts_left():
        line += " (no restart mends this: the launcher is told to end)"
    show_traceback(error)
    say(line)
    if os.environ.get("TORCHELASTIC_ERROR_FILE"):  # the launcher shows this in its own closing report
        with contextlib.suppress(OSError), open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
            json.dump({"message": line, "timestamp": int(time.time())}, file)
    if not error.retry:
        refuse_restart(LAUNCHER)
    leave(error.status)


def _let_others_speak(error: UserError) -> None:
    """Waits for the launcher to end this process, if another one says the same error."""
    if stated_rank(os.environ) not in ("0", str(error.speaker)):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(3)


def leave(status: int) -> NoReturn:
    """Ends at once: unlike after sys.exit, other processes and workers are not waited for."""
    for function in _at_end:
        with contextlib.suppress(OSError):
            function()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def run_script(main: Callable[[], int]) -> NoReturn:
    """`main` as a program of its own: ends with the status that it returns.

    Its errors are one line, and a scheduler's SIGTERM ends it as Ctrl-C does.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        # names of files and classes may have characters that a terminal's encoding lacks
        stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(main())
    except UserError as error:
        _let_others_speak(error)
        show_traceback(error)
        status, line = error.status, str(error)
    except Stopped as stopped:
        status, line = Stopped.status, str(stopped)
    except BrokenPipeError:  # of `| head`
        sys.stdout = None
        sys.exit(141)
    except OSError as error:
        show_traceback(error)
        status, line = (
            OutputError.status,
            f"{error.filename or 'a file'}: cannot be used ({error.strerror or error}); check it and its permissions",
        )
    except KeyboardInterrupt:
        sys.exit(130)
    say(f"error: {printable(line)}")
    sys.exit(status)


def say(line: str) -> None:
    """A line for the user, if there is anywhere left to say it; the status still tells."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(line), file=sys.stderr, flush=True)


def show_traceback(error: BaseException) -> None:
    """With FAT_TRACEBACK=1: where the error comes from, and what caused it."""
    if os.environ.get("FAT_TRACEBACK") == "1":
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
