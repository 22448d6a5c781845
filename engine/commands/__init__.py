"""What main.py does: one command a file, each a function of a `Session`; and the one way to run them."""

import functools
import importlib
from typing import Any, Callable, Optional, Sequence

from yacs.config import CfgNode

from utils.cli import importing
from utils.conflicts import TRAINING

from ..observer import Observer

COMMANDS = {  # by the flag that asks for it: its file, and the function in it
    "train": ("train", "train"),
    "check": ("check", "check"),
    "eval": ("evaluate", "evaluate_checkpoint"),
    "throughput": ("throughput", "throughput"),
    "benchmark_data": ("benchmark_data", "benchmark_data"),
}


def run_command(
    name: str,
    cfg: CfgNode,
    given: Sequence[str] = (),
    local_rank: Optional[int] = None,
    observers: Sequence[Observer] = (),
    images_per_second: Optional[float] = None,
) -> Any:
    """What a command returns, run with a config in this process.

    Args:
        name, images_per_second: see `load_command`.
        given, local_rank, observers: see `engine.session.open_session`.

    Raises:
        UserError: of every kind.
        Stopped: a signal has ended the work.
    """
    command = load_command(name, images_per_second)  # imports torch, which takes seconds

    from ..session import open_session

    with open_session(cfg, given, local_rank, name in TRAINING, observers) as session:
        return command(session)


def load_command(name: str, images_per_second: Optional[float]) -> Callable:
    """The function of a command: Session -> what it has to say of its work, if anything. Only what it needs is imported, which takes seconds.

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
