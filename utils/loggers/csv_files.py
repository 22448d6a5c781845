"""train.csv and epochs.csv: a row per log line and per epoch, a column per figure, for spreadsheets and pandas."""

import csv
import io
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

from ..files import Appender, write_text
from .logger import Logger

FILES = {"train": "train.csv", "epoch": "epochs.csv"}  # by kind of record


class CsvFiles(Logger):
    """Columns are named as in metrics.jsonl: update, epoch, loss ...; update, epoch, train_loss, raw_acc1 ..., ema_acc1 ..."""

    def open(self, last_update: int, epochs: int) -> None:
        """Raises OSError or OutputError."""
        self.tables = {}
        for kind, name in FILES.items():
            table = self.tables[kind] = Table(self.directory / name)
            table.keep(
                lambda row: int(row["update"]) <= last_update and (kind == "train" or int(row["epoch"]) < epochs)
            )

    def record(self, kind: str, update: int, values: Mapping[str, Any]) -> None:
        """Raises OutputError."""
        if kind in self.tables:
            self.tables[kind].add(flat({"update": update, **values}))

    def close(self) -> None:
        for table in self.tables.values():
            table.close()


class Table:
    """A CSV file with a header that grows by whole rows."""

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = []
        self.file: Optional[Appender] = None

    def keep(self, wanted: Callable[[Mapping[str, str]], bool]) -> None:
        """Leaves of an earlier file the rows that are `wanted`; one that was cut short is not."""
        if not self.path.exists():
            return
        text = self.path.read_text(errors="replace").replace("\0", "")  # of a power cut; Python 3.10's csv refuses it
        lines = list(csv.reader(io.StringIO(text, newline="")))
        self.columns = lines[0] if lines else []
        kept = []
        for line in lines[1:]:
            try:
                if len(line) == len(self.columns) and wanted(dict(zip(self.columns, line))):
                    kept.append(line)
            except (ValueError, KeyError):
                pass
        self._write(kept)

    def add(self, row: Mapping[str, Any]) -> None:
        new = [name for name in row if name not in self.columns]
        if new:  # the first row, or a figure that there was not before
            rows = (
                [line + [""] * len(new) for line in csv.reader(io.StringIO(self.path.read_text()))][1:]
                if self.columns
                else []
            )
            self.columns = [*self.columns, *new]
            self.close()
            self._write(rows)
        self.file = self.file or Appender(self.path)
        self.file.write(text_of([[row.get(name) for name in self.columns]]))

    def _write(self, rows: Sequence[Sequence[str]]) -> None:
        write_text(self.path, text_of([self.columns, *rows]))

    def close(self) -> None:
        if self.file:
            self.file.close()
        self.file = None


def text_of(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)  # None: an empty cell
    return text.getvalue()


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"raw": {"acc1": 1.0}} -> {"raw_acc1": 1.0}"""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(
            {f"{name}_{key}": inner for key, inner in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return found
