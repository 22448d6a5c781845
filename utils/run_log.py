"""A run's records: console, log.txt, metrics.jsonl, TensorBoard and pictures. Only rank 0 writes."""

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterable, Iterator, NoReturn, Optional

import numpy as np
from termcolor import colored
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .errors import OutputError
from .files import atomic_write, unwritable, write_text
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
            self.file = Appender(self.directory / "log.txt")
        except OSError as error:
            self._refuse(error)

    def open_records(self, last_update: int, epochs: int) -> None:
        """Opens metrics.jsonl and TensorBoard's files for appending. What they hold of updates after `last_update` and
        of the ends of epochs after the first `epochs`, which a resumed run repeats, goes; a new run has `last_update` -1.

        Raises:
            OutputError: the folder cannot be written to.
        """
        if not self.enabled:
            return
        metrics = self.directory / "metrics.jsonl"
        try:
            if metrics.exists():
                lines = metrics.read_text(errors="replace").splitlines()
                kept = [line for line in lines if _is_before(line, last_update, epochs)]
                write_text(metrics, "".join(line + "\n" for line in kept))
            self.metrics = Appender(metrics)
            self.writer = SummaryWriter(self.directory / "tensorboard", purge_step=last_update + 1)
        except OSError as error:
            self._refuse(error)

    def rewind(self, last_update: int, epochs: int) -> None:
        """Takes out of metrics.jsonl and TensorBoard what `open_records` takes out."""
        if self.writer:
            self.metrics.close()
            self.writer.close()
            self.open_records(last_update, epochs)

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
            with self._writing():
                for name, value in values.items():
                    self.writer.add_scalar(name, value, update)

    def picture(self, name: str, picture: np.ndarray) -> None:
        """Writes an RGB picture (height, width, 3) as <name>.png and shows it in TensorBoard."""
        if self.writer:
            with atomic_write(self.directory / f"{name}.png") as file:
                file.write(encode_png(picture))
            with self._writing():
                self.writer.add_image(name, picture, dataformats="HWC")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self.directory / "tensorboard", error) from None

    def progress(self, items: Iterable, total: int, label: str, done: int = 0) -> Iterator:
        """Passes the items on, with a bar if the console is a terminal."""
        bar_shown = self.enabled and sys.stdout.isatty()
        return iter(tqdm(items, label, total, initial=done, leave=False, file=sys.stdout, disable=not bar_shown))

    def list_unreadable(self, failures: list[str]) -> None:
        """Adds images that could not be read, with the reason, to unreadable.txt; each stands there once."""
        if not (self.enabled and failures and self.file):
            return
        path = self.directory / "unreadable.txt"
        listed = set(path.read_text(errors="replace").splitlines()) if path.exists() else set()
        new = set(failures) - listed
        if new:
            write_text(path, "".join(line + "\n" for line in sorted(listed | new)))
            self.warning(f"{len(new)} more images could not be read and were left out, {len(listed | new)} in all: see {path}")

    def count_unreadable(self) -> int:
        """How many images unreadable.txt lists."""
        path = self.directory / "unreadable.txt"
        return len(path.read_text(errors="replace").splitlines()) if path.exists() else 0

    def flush(self) -> None:
        """Writes out what TensorBoard still buffers; the other files are written line by line."""
        if self.writer:
            with self._writing():
                self.writer.flush()

    def close(self) -> None:
        for stream in (self.file, self.metrics, self.writer):
            if stream:
                with self._writing():
                    stream.close()
        self.file = self.metrics = self.writer = None


class Appender:
    """A text file to which whole lines are added: a line that does not fit on the disk leaves nothing of it there."""

    def __init__(self, path: Path):
        self.path = path
        self.file = open(path, "ab", buffering=0)

    def write(self, text: str) -> None:
        """Raises OutputError."""
        data = text.encode()
        position = os.fstat(self.file.fileno()).st_size
        try:
            while data:
                data = data[self.file.write(data) :]
        except OSError as error:
            os.ftruncate(self.file.fileno(), position)
            raise unwritable(self.path, error) from None

    def close(self) -> None:
        self.file.close()


def _quiet_writer_thread(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread gives its OSError to the next call; it need not print it too."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(args)


threading.excepthook = _quiet_writer_thread


def _is_before(line: str, last_update: int, epochs: int) -> bool:
    try:
        record = json.loads(line)
        return record["update"] <= last_update and not (record["kind"] == "epoch" and record["epoch"] >= epochs)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # a line cut short by a crash
