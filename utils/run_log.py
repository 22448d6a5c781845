"""A run's records: console, log.txt, metrics.jsonl, TensorBoard and pictures. Only rank 0 writes."""

import json
import sys
import time
from pathlib import Path
from typing import Any, Iterable, Iterator, NoReturn, Optional

import numpy as np
from termcolor import colored
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .errors import OutputError
from .files import atomic_write, write_text
from .pictures import encode_png


class RunLog:
    """Writes to the console at once; to log.txt after `open`, to the other records after `open_records`.

    Args:
        directory: the run's folder.
        enabled: False on ranks other than 0, whose log does nothing.
    """

    def __init__(self, directory: Path, enabled: bool):
        self.directory = directory
        self.enabled = enabled
        self.file = None
        self.metrics = None
        self.writer: Optional[SummaryWriter] = None

    def open(self) -> None:
        """Opens log.txt for appending.

        Raises:
            OutputError: the folder cannot be written to.
        """
        if not self.enabled:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.file = open(self.directory / "log.txt", "a", buffering=1)
        except OSError as error:
            self._refuse(error)

    def open_records(self, last_update: int) -> None:
        """Opens metrics.jsonl and TensorBoard's files for appending. What they hold of updates after `last_update`,
        which a resumed run repeats, goes; a new run has `last_update` -1.

        Raises:
            OutputError: the folder cannot be written to.
        """
        if not self.enabled:
            return
        metrics = self.directory / "metrics.jsonl"
        try:
            if metrics.exists():
                kept = [line for line in metrics.read_text(errors="replace").splitlines() if _update_of(line) <= last_update]
                write_text(metrics, "".join(line + "\n" for line in kept))
            self.metrics = open(metrics, "a", buffering=1)
            self.writer = SummaryWriter(self.directory / "tensorboard", purge_step=last_update + 1)
        except OSError as error:
            self._refuse(error)

    def _refuse(self, error: OSError) -> NoReturn:
        raise OutputError(
            f"{self.directory}: cannot be written to ({error.strerror or error}); change --output or its permissions"
        ) from None

    def info(self, message: str) -> None:
        self._line(message, None)

    def warning(self, message: str) -> None:
        self._line(f"warning: {message}", "yellow")

    def _line(self, message: str, color: Optional[str]) -> None:
        if not self.enabled:
            return
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        tqdm.write(f"{colored(now, 'green')} {colored(message, color) if color else message}", file=sys.stdout)
        sys.stdout.flush()
        if self.file:
            self.file.write(f"{now} {message}\n")

    def record(self, kind: str, update: int, values: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl: {"kind": kind, "update": update, **values}."""
        if self.metrics:
            self.metrics.write(json.dumps({"kind": kind, "update": update, **values}) + "\n")

    def scalars(self, update: int, values: dict[str, float]) -> None:
        """Adds a point to each named TensorBoard curve."""
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, update)

    def picture(self, name: str, picture: np.ndarray) -> None:
        """Writes an RGB picture (height, width, 3) as <name>.png and shows it in TensorBoard."""
        if self.writer:
            with atomic_write(self.directory / f"{name}.png") as file:
                file.write(encode_png(picture))
            self.writer.add_image(name, picture, dataformats="HWC")

    def progress(self, items: Iterable, total: int, label: str, done: int = 0) -> Iterator:
        """Passes the items on, with a bar if the console is a terminal."""
        bar_shown = self.enabled and sys.stdout.isatty()
        return iter(tqdm(items, label, total, initial=done, leave=False, file=sys.stdout, disable=not bar_shown))

    def flush(self) -> None:
        """Writes out what TensorBoard still buffers; the other files are written line by line."""
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        for stream in (self.file, self.metrics, self.writer):
            if stream:
                stream.close()


def _update_of(line: str) -> float:
    try:
        return float(json.loads(line)["update"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a crash
