"""Stage: between two log lines of a training run, the CPU never waits for the GPU."""

import warnings
from typing import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.arguments import config_flags, parse_args
from engine.commands import load_command
from engine.observer import Observer
from engine.session import open_session
from utils.config import load_config

from .main_runs import command
from .setting import Check, Setting, at_least, equal

READS = ("_local_scalar_dense", "nonzero", "equal.default", "is_nonzero")
FIRST = 2  # the updates before it make what is made once


class Reads(TorchDispatchMode):
    """Notes operators whose result the CPU reads, on any device."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in READS):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


class Watch(Observer):
    """On a GPU CUDA's own count of waits, which torch warns of; on a CPU the operators that would be some."""

    def __init__(self, dry_run: bool):
        self.dry_run, self.found, self.updates = dry_run, [], 0

    def before_update(self, trainer, step: int) -> None:
        if step < FIRST:
            return
        if self.dry_run:
            self.reads = Reads()
            self.reads.__enter__()
            return
        torch.cuda.synchronize()
        self.caught = warnings.catch_warnings(record=True)
        self.warned = self.caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def after_update(self, trainer, step: int) -> None:
        if step < FIRST:
            return
        self.updates += 1
        if self.dry_run:
            self.reads.__exit__(None, None, None)
            self.found += self.reads.found
            return
        torch.cuda.set_sync_debug_mode("default")
        self.caught.__exit__(None, None, None)
        places = [f"{w.filename}:{w.lineno}" for w in self.warned if "synchroniz" in str(w.message)]
        self.found += places


def checks(setting: Setting) -> Iterator[Check]:
    """A run with what may wait: mixing, erasing, clipping, the average of the weights."""
    for name in ("float32", "bfloat16"):
        precision = ["AMP.ENABLED", str(name != "float32"), "AMP.DTYPE", "bfloat16"]
        more = [*precision, "PRINT_FREQ", "100", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "AUG.REPROB", "1.0"]
        watch = Watch(setting.dry_run)
        run(command(setting, name, setting.device.type, *more), watch)
        yield at_least(f"{name} updates", watch.updates, 2)
        yield equal(f"{name} waits", len(watch.found), 0, places=sorted(set(watch.found)))


def run(argv: list[str], watch: Observer) -> None:
    """As main.py, in this process."""
    args = parse_args(argv)
    cfg = load_config(args.cfg, args.opts, config_flags(args), "train")
    with open_session(cfg, args.opts[::2], args.local_rank, True, [watch]) as session:
        load_command("train", None)(session)
