"""What lies in a run's folder besides its checkpoints: the names, and how each is read."""

import functools
import json
from pathlib import Path
from statistics import median
from typing import Any, Callable, Sequence

from yacs.config import CfgNode

from .config import load_config
from .ending import say
from .errors import DataError, one_line
from .files import require_no_device, unreadable

RECORDS = "metrics.jsonl"  # a line for each start, log line and end of an epoch
CONFIG = "config.yaml"
SPLIT = "split.csv"  # which images DATA.VAL_SHARE has put on which side
RESULT = "result.json"  # in the folder of a finished run
EVAL = "eval.json"  # of main.py --eval
EVAL_CLASSES = "eval_classes_{}.csv"  # with raw or ema weights, of each class, where the task has such figures
MISTAKES = "mistakes.json"  # what the last evaluation showed besides figures
REPORT = "report.html"

Record = dict[str, Any]
Records = dict[str, list[Record]]  # by kind: start, train, epoch

HINT = "give the folder of a run, such as output/fat_b0/default"
NEEDED = {  # of a record that tables and figures are made of
    "start": ("model", "params"),
    "train": ("update", "images_per_second"),
    "epoch": ("epoch", "train_loss", "raw"),
}


def read_config(run: Path) -> CfgNode:
    """Raises:
    DataError: the folder has none.
    ConfigError: it cannot be used.
    """
    path = run / CONFIG
    if not path.is_file():
        raise DataError(f"{path}: no such file; {HINT}")
    return load_config(path)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        return require_object(path, "")
    except DataError:
        return {}


def require_object(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: it cannot be read, or is none; with `remedy`, what to do.
    """
    try:
        require_no_device(path)
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, no result; {remedy}")
    return content


# The records


def read_records(run: Path, is_record: Callable[[Any], bool]) -> tuple[Records, list[str]]:
    """A run's records, and the lines that are none: cut short, or of something else.

    Args:
        is_record: whether a line's content is one; may raise what looking into it raises.

    Raises:
        DataError: the file cannot be read.
    """
    path = run / RECORDS
    try:
        require_no_device(path)
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise unreadable(path, error, HINT) from error
    records: Records = {kind: [] for kind in NEEDED}
    others = []
    for line in lines:
        try:
            record = json.loads(line)
            good = is_record(record) and record["kind"] in records
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if good:
            records[record["kind"]].append(record)
        else:
            others.append(line)
    return records, others


def read_figures(run: Path, needed: Sequence[str] = ()) -> Records:
    """The records that have figures; lines that are no such ones are left out with a warning.

    Args:
        needed: figures that each evaluation must have, such as 'acc1'.

    Raises:
        DataError: there are none, or the first epoch is not finished.
    """
    records, others = read_records(run, functools.partial(_has_figures, needed=needed))
    for line in others:
        say(f"warning: {run / RECORDS}: left out a line that is no record: {line[:60]!r}")
    if not all(records.values()):
        raise DataError(f"{run / RECORDS}: has no finished epoch yet; try again later")
    return records


def _has_figures(record: Any, needed: Sequence[str]) -> bool:
    values = {key: record[key] for key in NEEDED[record["kind"]]}
    figures = [value for key, value in values.items() if key not in ("model", "raw")]
    for weights in ("raw", "ema") if record["kind"] == "epoch" else ():
        if weights in record:
            evaluation = record[weights]
            figures += evaluation.values() if isinstance(evaluation, dict) and evaluation else [None]
            figures += [evaluation[name] for name in needed]
    whole = type(record.get("epoch", 0)) is int and isinstance(record.get("model", ""), str)
    return whole and all(type(figure) in (int, float) and abs(figure) < 1e300 for figure in figures)


def weights_in(records: Records) -> list[str]:
    """Which weights each epoch was evaluated with: 'raw', and 'ema' if there was an average."""
    return [name for name in ("raw", "ema") if name in records["epoch"][0]]


def median_speed(records: Records) -> float:
    """Images/s of training, of all processes."""
    return median(record["images_per_second"] for record in records["train"])
