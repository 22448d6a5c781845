"""Images taken off a split for validation (DATA.VAL_SHARE), where nobody has set others aside.

Which ones is a function of their names, bytes and labels and of a seed: not of their order, the format or the number of
processes. Images of the same bytes are on one side.
"""

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Iterable, NamedTuple, Optional, Protocol, Sequence

import numpy as np

from utils.errors import DataError
from utils.files import write_text
from utils.rng import derive_seed, fingerprint

from ..cache import ImageCache, can_be_cached
from ..label_sets import SEPARATORS, AnyLabels, LabelSets, images_per_class, labels_at, strata_of
from ..workers import reading
from .source import AnySource, Source


class ValShare(NamedTuple):
    """A part of a split's images."""

    share: float  # of each class, that is for validation; of images with several labels of those whose rarest it is
    seed: int  # chooses the images
    validation: bool  # whether these are wanted, or the others


class Divisible(Source, Protocol):
    """A source whose images can be taken by their classes and bytes."""

    @property
    def labels(self) -> AnyLabels:
        """Each image's label (N,), or its labels."""

    def read(self, index: int) -> bytes:
        """The bytes of an image's file."""


class SubsetSource:
    """Some images of a source that is read by index, in its order.

    Args:
        source: see `data.sources`.
        indices: of the images, rising.
        notes: lines to be said of it besides the source's own.
    """

    def __init__(self, source: Divisible, indices: np.ndarray, notes: Sequence[str] = ()):
        self.source: Any = source  # an archive also has what caches need
        self.indices = indices
        self.classes = source.classes
        self.labels = source.labels[indices]
        self.notes = [*getattr(source, "notes", ()), *notes]
        self.fingerprint = fingerprint(os.fsencode(self.key(index)) for index in range(len(indices)))
        sizes = getattr(source, "sizes", None)
        if sizes is not None:  # it can be held in memory
            self.sizes = sizes[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self.source.key(self.indices[index])

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def load(self, index: int) -> tuple[Any, Any]:
        return self.source.load(self.indices[index])

    def read(self, index: int) -> bytes:
        """The bytes of an image's file."""
        return self.source.read(self.indices[index])

    def place(self, index: int) -> str:
        """An image's file, or its key where it lies in an archive."""
        path = getattr(self.source, "path", None)
        return os.path.abspath(path(self.indices[index])) if callable(path) else self.key(index)

    @property
    def cache(self) -> Optional["SubsetCache"]:
        return getattr(self.source, "cache", None)

    @cache.setter
    def cache(self, cache: ImageCache) -> None:
        self.source.cache = SubsetCache(cache, self.indices)


class SubsetCache:
    """A cache of a subset's images, by their places in the whole source."""

    def __init__(self, cache: ImageCache, indices: np.ndarray):
        self.cache = cache
        self.positions = {int(index): position for position, index in enumerate(indices)}

    def __contains__(self, index: int) -> bool:
        return index in self.positions and self.positions[index] in self.cache

    def __getitem__(self, index: int) -> bytes:
        return self.cache[self.positions[index]]


def share_of(source: Divisible, wanted: ValShare) -> SubsetSource:
    """The training or the validation images of a source.

    Raises:
        DataError: a class would have no images on one of the sides.
    """
    keys = [source.key(index) for index in range(len(source))]
    groups = same_bytes(source)
    chosen = choose(keys, strata_of(source.labels), groups, wanted)
    _require_all_classes(source, chosen, wanted.share)
    notes = _notes(keys, source.labels, groups, chosen, wanted)
    return SubsetSource(source, np.flatnonzero(chosen == wanted.validation), notes)


def same_bytes(source: Divisible) -> list[list[int]]:
    """The images by groups of the same bytes, most of them of one.

    Only files of the same size are read. One that cannot be read is alone, as whoever loads it gets the error.
    """
    by_size: dict[Optional[int], list[int]] = defaultdict(list)
    for index in range(len(source)):
        by_size[_size(source, index)].append(index)
    groups: list[list[int]] = []
    for size, indices in by_size.items():
        if size is not None and len(indices) == 1:
            groups.append(indices)
            continue
        by_hash: dict[Any, list[int]] = defaultdict(list)
        for index in indices:
            reading(source.name(index))
            by_hash[_hash(source, index)].append(index)
        groups += by_hash.values()
    return groups


def _size(source: Any, index: int) -> Optional[int]:
    """Bytes of an image's file; None where only reading it says that."""
    if can_be_cached(source):
        return int(source.sizes[index])
    path = getattr(source, "path", None)
    try:
        return os.stat(path(index)).st_size if callable(path) else None
    except OSError:
        return None


def _hash(source: Divisible, index: int) -> Any:
    try:
        return hashlib.blake2b(source.read(index), digest_size=16).digest()
    except Exception:  # archives raise of many kinds at damaged files
        return index


def choose(keys: Sequence[str], labels: np.ndarray, groups: Iterable[Sequence[int]], wanted: ValShare) -> np.ndarray:
    """Which images (N,) are for validation.

    Of each class the groups are drawn in an order that depends on the seed and on the least of their keys, as long as
    they fit into the share, rounded; each class has at least one where it has two groups.
    """
    chosen = np.zeros(len(keys), dtype=bool)
    by_class: dict[int, list[tuple[int, str, list[int]]]] = defaultdict(list)
    for group in groups:
        first = min(group, key=lambda index: keys[index])
        draw = derive_seed("validation", wanted.seed, keys[first])
        by_class[int(labels[first])].append((draw, keys[first], list(group)))
    for drawn in by_class.values():
        members = [group for _, _, group in sorted(drawn)]
        total = sum(map(len, members))
        room = min(max(1, round(wanted.share * total)), total - 1)
        for group in members:
            if len(group) <= room:
                chosen[group] = True
                room -= len(group)
        if not any(chosen[group[0]] for group in members) and len(members) > 1:
            chosen[min(members, key=len)] = True
    return chosen


def _require_all_classes(source: Divisible, chosen: np.ndarray, share: float) -> None:
    """Raises DataError: a class has images, but none to train on, or none for validation."""
    several, classes = isinstance(source.labels, LabelSets), len(source.classes)
    counts = images_per_class(source.labels, classes)
    for what, side in (("validation", chosen), ("training", ~chosen)):
        lacking = np.flatnonzero((counts > 0) & (images_per_class(source.labels[side], classes) == 0))
        if len(lacking):
            name, count = source.classes[lacking[0]], counts[lacking[0]]
            more = f", and {len(lacking) - 1} more classes" if len(lacking) > 1 else ""
            alike = "" if several else ", which share their bytes"  # else it has a stratum of its own
            images = f"{count} images{alike}" if count > 1 else "1 image"
            first = next(i for i in range(len(source)) if lacking[0] in labels_at(source.labels, i))
            place = f"such as {source.name(first)}" if count > 1 else source.name(first)
            raise DataError(
                f"DATA.VAL_SHARE is {share}",
                f"it leaves the class {name!r}, of {images}, without {what} images{more} ({place})",
                "add other images of it, take the class out (DATA.CLASS_MAP), or name the splits in a list (DATA.DATASET list)",
            )


def _notes(
    keys: Sequence[str], labels: AnyLabels, groups: Sequence[Sequence[int]], chosen: np.ndarray, wanted: ValShare
) -> list[str]:
    """Lines of what was taken, and of what is not as the share says."""
    what = f"DATA.VAL_SHARE {wanted.share}, DATA.VAL_SEED {wanted.seed}"
    counts = Counter(strata_of(labels).tolist())
    share = f"of each of {len(counts)} classes its share"
    if isinstance(labels, LabelSets):
        share += ", drawn by the rarest label of an image; those without labels are a class, too"
    notes = [f"{what}: {chosen.sum()} of {len(keys)} images are for validation, {share}"]
    few = sum(round(wanted.share * count) < 1 for count in counts.values())
    if few:
        notes.append(f"{what}: {few} classes have too few images for that share; one of each is for validation")
    copies = [group for group in groups if len(group) > 1]
    if copies:
        example = " and ".join(sorted(keys[index] for index in copies[0])[:2])
        notes.append(
            f"{what}: {sum(map(len, copies))} images have the bytes of others, such as {example}; they are on one side"
        )
    mixed = [group for group in copies if len({labels_at(labels, index) for index in group}) > 1]
    if mixed:
        example = " and ".join(sorted(keys[index] for index in mixed[0])[:3])
        which = "different" if isinstance(labels, LabelSets) else "several"
        notes.append(f"warning: the same bytes have {which} labels: {example}; {len(mixed)} such groups in all")
    return notes


def write_split(path: Path, training: AnySource, validation: AnySource) -> None:
    """Writes which image is on which side, as a list that DATA.DATASET list reads; nothing where they are two splits.

    Raises:
        OutputError: it cannot be written.
    """
    if not (isinstance(training, SubsetSource) and isinstance(validation, SubsetSource)):
        return
    text = io.StringIO()
    text.write("# classes: ")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(training.classes)
    writer.writerow(["path", "labels" if isinstance(training.labels, LabelSets) else "label", "split"])
    between = next((one for one in SEPARATORS if not any(one in name for name in training.classes)), SEPARATORS[0])
    for split, source in (("train", training), ("val", validation)):
        for index in range(len(source)):
            names = [source.classes[label] for label in labels_at(source.labels, index)]
            writer.writerow([source.place(index), between.join(names), split])
    write_text(path, text.getvalue())
