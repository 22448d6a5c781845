"""torchrun and its processes, forked from this one: each saves the seconds that a new Python's imports take."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from typing import Callable

from conftest import Job, free_port
from utils import ending


class Forked:
    """A process of the launcher: what it needs of `subprocess.Popen`, for a function in place of a file.

    Args:
        program: called in the new process, which it ends.
        environment: all of it.
    """

    def __init__(self, program: Callable[[], None], environment: dict[str, str]):
        self.returncode = None
        launcher = os.getpid()
        # A signal in the middle of fork() would raise its exception in a hook of Python's, which drops it.
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        self.pid = os.fork()
        if self.pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        else:
            try:
                self._begin(environment, launcher)
                program()
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(1)

    @staticmethod
    def _begin(environment, launcher):
        """As a new Python begins: with signals, a session and an environment of its own."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.setsid()
        os.environ.clear()
        os.environ.update(environment)
        ending.LAUNCHER = launcher

    def poll(self):
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(0.01)
        return self.returncode


def torchrun(
    program: Callable[[], None],
    *flags,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> Job:
    """torchrun itself with these flags; where it would start Python with a script, it forks and calls `program`.

    `prepare` is called first in its own process.
    """

    def in_place_of_main():
        prepare()
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler
        from torch.distributed.elastic.rendezvous import dynamic_rendezvous

        # Each of a rendezvous' records looks through the source files of all modules for the name of its method.
        dynamic_rendezvous.get_method_name = lambda depth=2: "a method"
        SubprocessHandler._popen = lambda handler, argv, environment: Forked(program, environment)
        with contextlib.suppress(SystemExit):
            run.main([*map(str, flags), "a script"])
            os._exit(0)
        os._exit(1)

    return Job(environment=environment, prepare=in_place_of_main)


def on_this_machine(processes: int) -> list:
    """Flags of torchrun for so many processes."""
    return ["--nproc_per_node", processes, "--master_port", free_port()]
