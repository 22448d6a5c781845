"""What main.py does: one command a file, each a function of a `Session`."""

import functools
from typing import Callable, Optional

from utils.errors import ConfigError


def load_command(name: str, images_per_second: Optional[float]) -> Callable:
    """The function of a command: Session -> None. Only what it needs is imported, which takes seconds.

    Args:
        name: see `engine.arguments.command_of`.
        images_per_second: of benchmark_data.

    Raises:
        ConfigError: a package that it needs is not installed.
    """
    try:
        if name == "benchmark_data":
            from .benchmark_data import benchmark_data

            return functools.partial(benchmark_data, images_per_second=images_per_second)
        if name == "throughput":
            from .throughput import throughput

            return throughput
        if name == "eval":
            from .evaluate import evaluate_checkpoint

            return evaluate_checkpoint
        if name == "check":
            from .check import check

            return check
        from .train import train

        return train
    except ImportError as error:
        package = error.name or "a package"
        raise ConfigError(f"{package}: cannot be imported ({error}); pip install -r requirements.txt") from error
