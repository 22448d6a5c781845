"""A stage in a process of its own, with a limit: what it has said by then counts, and all that it started ends with it."""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Iterator

import torch
from tqdm import tqdm

from .setting import Check, Setting, last_line

GRACE = 2.0  # seconds between the limit and the end by force


def run_stage(module: str, setting: Setting) -> list[Check]:
    """The checks of a module of this folder. One that ends by itself, or not in time, has a failed check for that."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    results, log = setting.folder / "checks.jsonl", setting.folder / "log.txt"
    results.unlink(missing_ok=True)
    started = time.monotonic()
    context = multiprocessing.get_context(setting.start_method)
    process = context.Process(target=_work, args=(module, setting, results, log))
    process.start()
    while process.exitcode is None and setting.seconds_left > -GRACE:  # join() would wait for its children, too
        time.sleep(0.02)
    timed_out = process.exitcode is None
    with contextlib.suppress(ProcessLookupError):  # what it started, too
        os.killpg(process.pid, signal.SIGKILL)
    while process.exitcode is None:
        time.sleep(0.02)
    found = list(_read(results))
    seconds = round(time.monotonic() - started, 1)
    if timed_out:
        found.append(Check("in time", seconds, "its limit", False, {"log": str(log)}))
    elif process.exitcode:
        found.append(Check("exit status", f"{process.exitcode} ({last_line(log)})", "=0", False, {"log": str(log)}))
    elif not found:
        found.append(Check("checks", 0, ">=1", False))
    return found


def _read(path: Path) -> Iterator[Check]:
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):  # the last one may be cut off
            yield Check(**json.loads(line))


def _work(module: str, setting: Setting, results: Path, log: Path) -> None:
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    sys.stdout = sys.stderr = open(log, "w", buffering=1)
    for descriptor in (1, 2):  # what libraries and further processes write
        os.dup2(sys.stdout.fileno(), descriptor)
    if setting.dry_run:
        torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
    with open(results, "a") as file:
        for check in importlib.import_module(f"{__package__}.{module}").checks(setting):
            file.write(json.dumps(asdict(check)) + "\n")
            file.flush()


def _end_with_parent() -> None:
    """Ends this process and its children when the one that measures them is gone."""
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)
