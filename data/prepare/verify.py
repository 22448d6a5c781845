"""What a data set holds, and one hash of it that is the same in each format."""

import hashlib
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional

from utils.errors import DataError, OutputError

from .image_check import check
from .images import in_order
from .preparation import Progress
from .read import FORMATS, SPLITS, Item, guess

SHOWN = 20


def verify(path: Path, kind: Optional[str] = None, workers: int = 1, decode: bool = True) -> dict[str, Any]:
    """
    Args:
        path: the folder of the data set.
        kind: its format, guessed if None.
        workers: processes that decode and hash; 0 does it in this one.
        decode: whether images must be readable too.

    Returns:
        format, `splits` (images, bytes, classes with their counts, hash), `problems` and `notes`, one line each.

    Raises:
        DataError: there is no data set of the format.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give the one that a conversion wrote")
    kind = kind or guess(path)
    splits = [split for split in SPLITS if FORMATS[kind].has(path, split)]
    if not splits:
        raise DataError(
            f"{path}: holds no train or val as {kind}, {FORMATS[kind].__doc__}; check the path and --format"
        )
    report: dict[str, Any] = {"path": str(path), "format": kind, "splits": {}, "problems": [], "notes": []}
    problems = report["problems"]
    for left in sorted([*path.glob("*.unfinished"), *path.glob("*/*.unfinished")]):
        problems.append(f"{left}: is unfinished; start the conversion again")
    for split in splits:
        report["splits"][split] = _split(path, kind, split, workers, decode, problems, report["notes"])
    if len(splits) == 2:
        train, val = (report["splits"][split]["classes"] for split in SPLITS)
        for name in sorted(set(train) ^ set(val)):
            problems.append(f"{path}: class {name!r} is in {'train' if name in train else 'val'} only; labels differ")
    return report


def _split(
    path: Path, kind: str, split: str, workers: int, decode: bool, problems: list[str], notes: list[str]
) -> dict[str, Any]:
    names, items = FORMATS[kind].read(path, split, problems, notes)
    images: list[tuple[str, str, Optional[int]]] = []
    num_bytes = 0
    with Progress(f"verifying {split}") as progress:
        for key, label, digest, size, reason in _checked(items, workers, decode):
            if reason:
                problems.append(f"{path}: {split} {key}: cannot be read as an image ({reason})")
            images.append((key, digest, label))
            num_bytes += size
            progress.add(size)
    counts = Counter(class_of(key) for key, _, _ in images)
    classes = names or sorted(counts)
    place = {name: label for label, name in enumerate(classes)}
    if classes != sorted(classes):
        problems.append(f"{path}: {split}'s classes are not in the order of their names")
    for name in classes:
        if not counts[name]:
            problems.append(f"{path}: {split} has no image of class {name!r}")
    lines = []
    for key, digest, label in images:
        right = place.get(class_of(key))
        if label is not None and label != right:
            problems.append(f"{path}: {split} {key}: has label {label}, its class' is {right}")
        lines.append(f"{key}\t{digest}\t{right if label is None else label}\n")
    for key, times in Counter(key for key, _, _ in images).items():
        if times > 1:
            problems.append(f"{path}: {split} {key}: is there {times} times")
    return {
        "images": len(images),
        "bytes": num_bytes,
        "classes": {name: counts[name] for name in classes},
        "hash": hashlib.blake2b("".join(sorted(lines)).encode(errors="surrogateescape"), digest_size=16).hexdigest(),
    }


def class_of(key: str) -> str:
    return key.partition("/")[0]


def _checked(items: Iterator[Item], workers: int, decode: bool) -> Iterable[tuple]:
    if not workers:
        yield from (check(item, decode) for item in items)
        return
    # Not forked, as other threads may hold locks. Ctrl-C reaches them too, and is this process' to answer.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, get_context("forkserver"), signal.signal, ignore) as pool:
        try:
            yield from in_order(pool, check, items, 4 * workers, decode)
        except BrokenProcessPool as error:
            raise OutputError(
                "--workers: one of the processes was killed, perhaps for its memory; give fewer"
            ) from error


def as_text(report: dict[str, Any]) -> str:
    lines = []
    for name, split in report["splits"].items():
        counts = split["classes"].values()
        lines.append(
            f"{name}: {split['images']:,} images, {split['bytes'] / 1e9:,.3f} GB, {len(counts):,} classes of "
            f"{min(counts, default=0):,} to {max(counts, default=0):,}, hash {split['hash']}"
        )
    problems = report["problems"]
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"wrong: {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"wrong: {len(problems) - SHOWN:,} more, which --json lists")
    if not problems:
        lines.append(f"{report['path']}: is a whole {report['format']} data set")
    return "\n".join(lines)
