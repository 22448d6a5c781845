"""What a run has written of itself, metrics.jsonl, for the scripts that show it."""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from utils.errors import DataError
from utils.files import record_lines

Records = dict[str, list[dict[str, Any]]]  # by kind: start, train, epoch

NEEDED = {
    "start": ("model", "params"),
    "train": ("update", "images_per_second"),
    "epoch": ("epoch", "train_loss", "raw"),
}


def read_records(run: Path) -> Records:
    """The records of a run's folder; lines that are none are left out with a warning.

    Raises:
        DataError: there are none, or the first epoch is not finished.
    """
    path = run / "metrics.jsonl"
    records: Records = {kind: [] for kind in NEEDED}
    for line in record_lines(path):
        try:
            record = json.loads(line)
            kind = record["kind"]
            needed = {key: record[key] for key in NEEDED[kind]}
            figures = [value for key, value in needed.items() if key not in ("model", "raw")]
            for weights in ("raw", "ema") if kind == "epoch" else ():
                if weights in record:
                    figures += [record[weights]["acc1"], record[weights]["loss"]]
            whole = type(record.get("epoch", 0)) is int and isinstance(record.get("model", ""), str)
            if not whole or not all(type(figure) in (int, float) and abs(figure) < 1e300 for figure in figures):
                raise ValueError("no figures")
            records[kind].append(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            print(f"warning: {path}: left out a line that is no record: {line[:60]!r}", file=sys.stderr)
    if not all(records.values()):
        raise DataError(f"{path}: has no finished epoch yet; try again later")
    return records


def weights_in(records: Records) -> list[str]:
    """Which weights each epoch was evaluated with: 'raw', and 'ema' if there was an average."""
    return [name for name in ("raw", "ema") if name in records["epoch"][0]]


def median_speed(records: Records) -> float:
    """Images/s of training, of all processes."""
    return median(record["images_per_second"] for record in records["train"])
