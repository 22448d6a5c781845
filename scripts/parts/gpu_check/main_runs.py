"""main.py as a command in a process of its own, on small images of noise."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

import torch

from engine.checkpoints.parts import read_with_parts
from utils.provenance import ROOT

from .setting import Setting, last_line

CLASSES = 5


class MainRun:
    """One command, whose output goes to a file."""

    def __init__(self, setting: Setting, argv: Sequence[str], log: Path):
        self.log = log
        context = multiprocessing.get_context(setting.start_method)
        self.process = context.Process(target=_main, args=(list(argv), log, setting.dry_run))
        self.process.start()

    def wait(self) -> None:
        """Raises RuntimeError, with what it last said, if it does not end well."""
        self.process.join()
        if self.process.exitcode:
            said = last_line(self.log)
            raise RuntimeError(f"main.py ended with status {self.process.exitcode}: {said} (see {self.log})")


def kill_each(runs: dict[str, MainRun], condition: Callable[[str], bool]) -> dict[str, bool]:
    """kill -9 to each run as soon as the condition holds of its name; False where one had ended before."""
    killed = {}
    while len(killed) < len(runs):
        for name in runs.keys() - killed.keys():
            process = runs[name].process
            if not process.is_alive():
                killed[name] = False
            elif condition(name):
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                killed[name] = process.exitcode == -signal.SIGKILL
        time.sleep(0.005)
    return killed


def _main(argv: list[str], log: Path, dry_run: bool) -> None:
    with open(log, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    if dry_run:
        torch.set_num_threads(1)
    sys.argv = ["main.py", *argv]
    runpy.run_path(str(ROOT / "main.py"), run_name="__main__")


def command(setting: Setting, tag: str, device: str, *options: str) -> list[str]:
    """Arguments of main.py for FAT-Tiny on images of noise, a run of 3 epochs of 4 updates."""
    return [
        "--cfg", str(ROOT / "configs/imagenet.yaml"), "--output", str(setting.folder), "--tag", tag, "--batch-size", "16",
        "--opts", "DEVICE", device, "MODEL.NAME", "fat_tiny", "MODEL.NUM_CLASSES", str(CLASSES), "DATA.DATASET", "synthetic",
        "DATA.SYNTHETIC_IMAGES", "64", "DATA.IMG_SIZE", "32", "DATA.NUM_WORKERS", "0", "TRAIN.EPOCHS", "3",
        "TRAIN.WARMUP_EPOCHS", "1", "TRAIN.TOTAL_BATCH_SIZE", "0", "TRAIN.BASE_LR", "0.02", "EMA.ENABLED", "True",
        "PRINT_FREQ", "1", *options,
    ]  # fmt: skip


def run_folder(setting: Setting, tag: str) -> Path:
    return setting.folder / "fat_tiny" / tag


def state_of(run: Path) -> dict:
    """What a run's last checkpoint has, without its settings, which have its name."""
    checkpoint = read_with_parts(run / "last.pth")
    return {key: value for key, value in checkpoint.items() if key != "config"}


def count_differences(a, b) -> int:
    """Tensors and values that are not equal to the last bit in two nested states."""
    if type(a) is not type(b):
        return 1
    if isinstance(a, torch.Tensor):
        return int(a.dtype != b.dtype or not torch.equal(a, b))
    if isinstance(a, dict):
        return len(a.keys() ^ b.keys()) + sum(count_differences(a[key], b[key]) for key in a.keys() & b.keys())
    if isinstance(a, (list, tuple)):
        return abs(len(a) - len(b)) + sum(count_differences(x, y) for x, y in zip(a, b))
    return int(a != b)
