"""What main.py does: one command a file, each a function of a `Session`."""

import functools
import importlib
from typing import Callable, Optional

from utils.cli import importing

COMMANDS = {  # by the flag that asks for it: its file, and the function in it
    "train": ("train", "train"),
    "check": ("check", "check"),
    "eval": ("evaluate", "evaluate_checkpoint"),
    "throughput": ("throughput", "throughput"),
    "benchmark_data": ("benchmark_data", "benchmark_data"),
}


def load_command(name: str, images_per_second: Optional[float]) -> Callable:
    """The function of a command: Session -> None. Only what it needs is imported, which takes seconds.

    Args:
        name: see `engine.arguments.command_of`.
        images_per_second: of benchmark_data.

    Raises:
        ConfigError: a package that it needs is not installed.
    """
    module, function = COMMANDS[name]
    with importing():
        command = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return functools.partial(command, images_per_second=images_per_second) if name == "benchmark_data" else command
