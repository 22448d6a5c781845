"""What main.py does: one command a file, each a function of a `Session`."""

import argparse
import functools
from typing import Callable

from utils.errors import ConfigError


def load_command(args: argparse.Namespace) -> Callable:
    """The function that the flags ask for: Session -> None. Only what it needs is imported, which takes seconds.

    Raises:
        ConfigError: a package that it needs is not installed.
    """
    try:
        if args.benchmark_data is not None:
            from .benchmark_data import benchmark_data

            return functools.partial(benchmark_data, images_per_second=args.benchmark_data)
        if args.throughput:
            from .throughput import throughput

            return throughput
        if args.eval:
            from .evaluate import evaluate_checkpoint

            return evaluate_checkpoint
        if args.check:
            from .check import check

            return check
        from .train import train

        return train
    except ImportError as error:
        name = error.name or "a package"
        raise ConfigError(f"{name}: cannot be imported ({error}); pip install -r requirements.txt") from error
