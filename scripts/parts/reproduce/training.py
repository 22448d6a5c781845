"""Many training runs, some at a time."""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Callable, Sequence

import torch
from tqdm import tqdm

from utils.errors import UserError

from .results import ROOT


@dataclass(frozen=True)
class Job:
    """A training run: what main.py is called with, and where its output goes."""

    name: str
    argv: tuple[str, ...]
    log: Path


class TrainingError(UserError):
    """A run ended with an error; `status` is main.py's."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def train_all(jobs: Sequence[Job], at_a_time: int, done: Callable[[Job, float], None]) -> None:
    """Runs all jobs, `at_a_time` processes at once; `done(job, seconds)` is called after each.

    A run that was finished before ends at once, one that was cut off goes on, as main.py has it.

    Raises:
        TrainingError: a run ended with an error; those beside it are asked to save and end.
    """
    # Its processes fork from one that has imported torch and has no threads yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "engine.commands.train"])
    threads = max(1, len(os.sched_getaffinity(0)) // at_a_time)
    waiting, running = list(jobs), {}
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                job = waiting.pop(0)
                process = context.Process(target=_train, args=(job.argv, str(job.log), threads))
                process.start()
                running[process.sentinel] = (job, process, time.monotonic())
            for sentinel in wait(list(running)):
                job, process, started = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    raise _failed(job, process.exitcode)
                done(job, time.monotonic() - started)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()


def _train(argv: Sequence[str], log: str, threads: int) -> None:
    os.setsid()  # Ctrl-C reaches them through the parent alone
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(threads)
    # its own is a semaphore, which a process that ends like main.py leaves to be cleaned up
    tqdm.set_lock(threading.RLock())
    sys.argv = ["main.py", *argv]
    runpy.run_path(str(ROOT / "main.py"), run_name="__main__")


def _end_with_parent() -> None:
    """Asks this process to save and end when the one that runs all of them is gone, even by kill -9."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _failed(job: Job, status: int) -> TrainingError:
    lines = (
        [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()] if job.log.is_file() else []
    )
    reason = lines[-1].removeprefix("error: ") if lines else "no output"
    return TrainingError(
        f"{job.name}: its training ended with status {status} ({reason}); see {job.log}",
        status if status > 0 else 128 - status,
    )
