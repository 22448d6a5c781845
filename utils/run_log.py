"""A run's records: console, log.txt, metrics.jsonl, pictures, and what loggers make of them. Only rank 0 writes."""

import json
import sys
import time
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, NoReturn, Optional, Sequence

import numpy as np
from termcolor import colored
from tqdm import tqdm

from .files import Appender, atomic_write, unwritable_folder, write_text
from .loggers import Logger, create_loggers
from .pictures import encode_png
from .run_files import RECORDS


class RunLog:
    """Writes to the console at once; to log.txt after `open`, to the other records after `open_records`.

    Args:
        directory: the run's folder.
        enabled: False on ranks other than 0, whose log does nothing.
        loggers: those besides TensorBoard, see `utils.loggers`.
        config: the run's, which they may show.
    """

    def __init__(
        self, directory: Path, enabled: bool, loggers: Sequence[str] = (), config: Optional[Mapping[str, Any]] = None
    ):
        self.directory = directory
        self.enabled = enabled
        self.file: Optional[Appender] = None
        self.metrics: Optional[Appender] = None
        self.known = create_loggers(loggers, directory, config or {}, self.warning)
        self.loggers: list[Logger] = []  # those that are open

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
        """Opens metrics.jsonl and the loggers for appending. What they hold of updates after `last_update` and of the
        ends of epochs after the first `epochs`, which a resumed run repeats, goes; a new run has `last_update` -1.

        Raises:
            OutputError: the folder cannot be written to.
            ConfigError: a logger cannot be used.
        """
        if not self.enabled:
            return
        try:
            self._open_metrics(last_update, epochs)
            for logger in self.known:
                logger.open(last_update, epochs)
                self.loggers.append(logger)
        except OSError as error:
            self._refuse(error)

    def _open_metrics(self, last_update: int, epochs: int) -> None:
        path = self.directory / RECORDS
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()
            kept = [line for line in lines if _is_before(line, last_update, epochs)]
            write_text(path, "".join(line + "\n" for line in kept))
        self.metrics = Appender(path)

    def rewind(self, last_update: int, epochs: int) -> None:
        """Takes out of metrics.jsonl and the loggers what `open_records` takes out."""
        if self.metrics:
            self.metrics.close()
            try:
                self._open_metrics(last_update, epochs)
                for logger in self.loggers:
                    logger.rewind(last_update, epochs)
            except OSError as error:
                self._refuse(error)

    def _refuse(self, error: OSError) -> NoReturn:
        raise unwritable_folder(self.directory, error) from error

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
        for logger in self.loggers:
            logger.record(kind, update, values)

    def scalars(self, update: int, values: dict[str, float]) -> None:
        """Adds a point to each named curve of the loggers."""
        for logger in self.loggers:
            logger.scalars(update, values)

    def best(self, values: dict[str, Any]) -> None:
        """Tells the loggers the best metric so far."""
        for logger in self.loggers:
            logger.best(values)

    def picture(self, name: str, picture: np.ndarray) -> None:
        """Writes an RGB picture (height, width, 3) as <name>.png and shows it in the loggers."""
        if self.metrics:
            with atomic_write(self.directory / f"{name}.png") as file:
                file.write(encode_png(picture))
        for logger in self.loggers:
            logger.picture(name, picture)

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
            self.warning(
                f"{len(new)} more images could not be read and were left out, {len(listed | new)} in all: see {path}"
            )

    def count_unreadable(self) -> int:
        """How many images unreadable.txt lists."""
        path = self.directory / "unreadable.txt"
        return len(path.read_text(errors="replace").splitlines()) if path.exists() else 0

    def flush(self) -> None:
        """Writes out what loggers still buffer; the other files are written line by line."""
        for logger in self.loggers:
            logger.flush()

    def close(self) -> None:
        self._close_files()
        while self.loggers:
            self.loggers.pop(0).close()

    def abandon(self) -> None:
        """Instead of `close`, where an error ends the work."""
        while self.loggers:
            self.loggers.pop(0).abandon()
        self._close_files()

    def _close_files(self) -> None:
        for stream in (self.file, self.metrics):
            if stream:
                stream.close()
        self.file = self.metrics = None


def _is_before(line: str, last_update: int, epochs: int) -> bool:
    try:
        record = json.loads(line)
        return record["update"] <= last_update and not (record["kind"] == "epoch" and record["epoch"] >= epochs)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # a line cut short by a crash
