"""What a logger can be told."""

from pathlib import Path
from typing import Any, Callable, Mapping

import numpy as np


class Logger:
    """A logger takes what it has a use for; `update` counts the run's updates.

    Args:
        directory: the run's folder.
        config: the run's, as plain dictionaries.
        warn: says a line.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], warn: Callable[[str], None]):
        self.directory = directory
        self.config = config
        self.warn = warn

    @classmethod
    def require(cls) -> None:
        """Raises ConfigError: a package that it needs is not installed."""

    def open(self, last_update: int, epochs: int) -> None:
        """Begins, or goes on after `last_update` and the ends of the first `epochs` epochs: what is known of later ones goes.
        A new run has `last_update` -1.
        """

    def rewind(self, last_update: int, epochs: int) -> None:
        """Goes back, while it is open, as `open` does."""
        self.close()
        self.open(last_update, epochs)

    def record(self, kind: str, update: int, values: Mapping[str, Any]) -> None:
        """A record as in metrics.jsonl: kind start, train or epoch."""

    def scalars(self, update: int, values: Mapping[str, float]) -> None:
        """A point of each named curve."""

    def picture(self, name: str, picture: np.ndarray) -> None:
        """RGB (height, width, 3), uint8."""

    def best(self, values: Mapping[str, Any]) -> None:
        """The run's best metric so far, with its weights and epoch."""

    def flush(self) -> None:
        """Nothing of before is to be lost if the process is killed."""

    def close(self) -> None:
        """The end; `open` can follow."""

    def abandon(self) -> None:
        """The process ends with an error: what would be lost otherwise is sent, nothing is waited for long."""
