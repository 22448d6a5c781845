"""One split of a folder of images, as the converters read it: bytes in FolderSource's order."""

import os
from collections import deque
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

import numpy as np

from utils.errors import DataError
from utils.files import unreadable
from utils.rng import fingerprint

from ..sources.folder import FolderSource, Remedies

# the script has a flag for one of them, and reads nothing but train/ and val/
REMEDIES = Remedies(trust_links="give --outside-links", or_skip="", or_map="", or_other_folder="")
READERS = 8  # threads; on network file systems a file's latency is most of its time


class Images:
    """The images of `root`/`split`.

    Attributes:
        classes: names, in label order.
        sizes: of the files, in bytes.
        fingerprint: of names, sizes and times of the files.

    Raises:
        DataError: the folder is missing, or not as FolderSource wants it; a file's name cannot stand in every format.
    """

    def __init__(self, root: Path, split: str, outside_links: bool = False):
        self.split, self.folder = split, root / split
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder}: no such folder; give the folder that holds train/<class>/* and val/<class>/*"
            )
        self.source = read_folder(self.folder, outside_links)
        self.classes = self.source.classes
        self.sizes = np.empty(len(self), dtype=np.int64)
        times = np.empty(len(self), dtype=np.int64)
        for i in range(len(self)):
            key = self.key(i)
            if not key.isprintable():  # a tab or newline would end a line of Swin's map, other bytes are no UTF-8
                raise DataError(f"{str(self.folder / key)!r}: its name has unprintable characters; rename the file")
            try:
                status = os.stat(self.folder / key)
            except OSError as error:
                raise unreadable(self.folder / key, error, "replace or remove the file") from error
            self.sizes[i], times[i] = status.st_size, status.st_mtime_ns
        self.fingerprint = fingerprint(
            [*map(os.fsencode, map(self.key, range(len(self)))), self.sizes.tobytes(), times.tobytes()]
        )

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def label(self, index: int) -> int:
        return int(self.source.labels[index])

    def read(self, index: int) -> bytes:
        """The file's bytes.

        Raises:
            UserError: it cannot be read, or has another size than at the start.
        """
        data = self.source.load(index)[0]
        if len(data) != self.sizes[index]:
            raise DataError(
                f"{self.folder / self.key(index)}: has changed since the start; start again when nobody writes there"
            )
        return data

    def read_all(self, indices: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """(index, bytes) in the order given, read ahead by threads."""
        with ThreadPoolExecutor(READERS) as pool:
            yield from zip(indices, in_order(pool, self.read, indices, 4 * READERS))


def read_folder(folder: Path, outside_links: bool) -> FolderSource:
    """The files of a split's folder, undecoded."""
    return FolderSource(folder, decode=lambda file: file.read(), outside_links=outside_links, remedies=REMEDIES)


def open_splits(root: Path, splits: Sequence[str], outside_links: bool) -> list[Images]:
    """Images of the splits, which must have the same classes.

    Raises:
        DataError: see `Images`; or a class is in one split and not in another.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds train/<class>/* and val/<class>/*")
    sets = [Images(root, split, outside_links) for split in splits]
    for other in sets[1:]:
        require_same_classes(sets[0].folder, sets[0].classes, other.folder, other.classes)
    return sets


def require_same_classes(first: Path, classes: Iterable[str], second: Path, others: Iterable[str]) -> None:
    missing, more = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    if missing or more:
        where, name, elsewhere = (second, missing[0], first) if missing else (first, more[0], second)
        raise DataError(
            f"{where}: lacks class {name!r} and {len(missing or more) - 1} more that {elsewhere} has; labels would differ: "
            "give both splits the same classes"
        )


def in_order(pool: Executor, function: Callable, items: Iterable, ahead: int, *args: Any) -> Iterator:
    """function(item, *args) of each item, in order; at most `ahead` of them wait, so that memory is bounded."""
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item, *args))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
