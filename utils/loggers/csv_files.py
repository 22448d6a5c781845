"""train.csv and epochs.csv: a row per log line and per epoch, a column per figure, for spreadsheets and pandas."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any, Mapping, Sequence

from ..errors import OutputError
from ..files import write_text
from ..run_files import RECORDS
from .logger import Logger

FILES = {"train": "train.csv", "epoch": "epochs.csv"}  # by kind of record


class CsvFiles(Logger):
    """The files are made of metrics.jsonl, which is written first, whenever an epoch ends and when the run ends.

    So they need no care of their own in a run that is killed, gone on with or taken back: the next one replaces them.
    Columns are named as in metrics.jsonl: update, epoch, loss ...; update, epoch, train_loss, raw_acc1 ..., ema_acc1 ...
    """

    def open(self, last_update: int, epochs: int) -> None:
        """Raises OutputError."""
        self._write()

    def record(self, kind: str, update: int, values: Mapping[str, Any]) -> None:
        """Raises OutputError."""
        if kind == "epoch":
            self._write()

    def close(self) -> None:
        """Raises OutputError."""
        self._write()

    def abandon(self) -> None:
        with contextlib.suppress(OutputError):  # the run's error is said, which may be the full disk
            self._write()

    def _write(self) -> None:
        records = [json.loads(line) for line in (self.directory / RECORDS).read_text().splitlines()]
        for kind, name in FILES.items():
            write_table(self.directory / name, [row_of(record) for record in records if record["kind"] == kind])


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A column for each name in any of the rows, empty where a row has none; without rows there is no file."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def row_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """{"kind": "epoch", "update": 7, "raw": {"acc1": 1.0}} -> {"update": 7, "raw_acc1": 1.0}"""
    row: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            row.update({f"{name}_{key}": inner for key, inner in value.items()})
        elif name != "kind":
            row[name] = value
    return row
