"""Images that a list names: DATA_PATH is the list, or a folder that holds it, or that holds one for each split."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterable, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from utils.errors import DataError
from utils.files import open_regular
from utils.rng import fingerprint

from ..class_order import timm_order, torchvision_order
from ..label_sets import LabelCells, LabelSets, target_of
from ..list_rows import JSON_LINES, WITH_HEADER, ImageList, Row, read_list
from ..workers import reading
from .labelled_files import LabelledFiles
from .reading import OR_SKIP, read_image

ALL = "all"  # the split that has all images of a list
SAME_SPLITS = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}
SUFFIXES = ("", *WITH_HEADER, ".txt", ".lst", *JSON_LINES)  # that a list of a split may have, besides its name
SHOWN = 3  # files of a folder that a message names
TRIED = 100  # rows by which it is decided what their paths are relative to


@dataclass(frozen=True)
class Listing:
    """What is to be known of a list besides what there is of every format."""

    name: str = ""  # of the list in DATA_PATH; '': DATA_PATH is the list, or has one for each split
    train_split: str = "train"  # its labels are the classes, where neither a map nor the first line names them
    undivided: bool = False  # whether a list that names no splits may be taken as a whole, as DATA.VAL_SHARE divides it
    may_miss: bool = False  # whether files that are not there are found out when they are read, for DATA.ON_ERROR skip


class Labels(NamedTuple):
    """The classes of a list."""

    classes: list[str]  # names, in label order
    by_text: dict[str, int]  # what a row says -> label
    order: str  # where the order comes from
    partial: bool = False  # whether rows of other labels are left out


class ListSource(LabelledFiles):
    """The images of one split of a list, in its order.

    Args:
        images: the list.
        rows: those of the split.
        roots: folders that its paths may be relative to; the first one that has its files is taken.
        labels: of the list's classes.
        decode: open file -> image.
        may_miss: see `Listing`.
        several: whether an image may have several labels, or none.

    Raises:
        DataError: the list contradicts itself, names files that are not there, or labels that are none; at `load`, a file
            is no image.
    """

    def __init__(
        self,
        images: ImageList,
        rows: Sequence[Row],
        roots: Sequence[Path],
        labels: Labels,
        decode: Callable[[BinaryIO], Any],
        may_miss: bool = False,
        several: bool = False,
    ):
        self.list, self.decode = images.path, decode
        self.classes = labels.classes
        rows, twice = _each_once(images.path, rows)
        rows, unnamed = (_with_known if several else _known)(images.path, rows, labels)
        root = _root_of(rows, roots)
        if not may_miss:
            _require_files(images.path, rows, root)
        self.notes = [
            *images.notes,
            *twice,
            *unnamed,
            f"{images.path}: its {len(self.classes)} classes are {labels.order}",
        ]
        self.root = os.fsencode(root)
        # Arrays, not a list of rows: workers share their memory, as no reference counts in it change.
        self.paths = np.array([os.fsencode(row.path) for row in rows])
        sets = [[labels.by_text[text] for text in row.labels] for row in rows]
        self.labels = LabelSets.of(sets, len(self.classes)) if several else np.array([label for (label,) in sets])
        names = [self.classes[labels[0]] for labels in sets if labels]
        keys = [_normal(row) for row in rows] if several else _keys(rows, names)
        self.keys = np.array([os.fsencode(key) for key in keys])
        self.fingerprint = fingerprint(self.keys.tolist())

    @classmethod
    def open(
        cls,
        split: str,
        data_path: str,
        decode: Callable,
        class_to_idx,
        columns,
        class_order: str,
        listing: Listing,
        cells: Optional[LabelCells] = None,
        **_,
    ) -> "ListSource":
        if not data_path:
            raise DataError("DATA.DATA_PATH", "is not set", "give --data-path, the list or the folder that holds it")
        path, own = _find_list(Path(data_path), listing.name, split)
        images = read_list(path, columns, cells)
        _require_one_split(images)
        training = images
        if own:
            split = _without_suffix(split)
            training = _training_list(Path(data_path), listing.train_split, columns, cells) or images
            _require_apart(images, training)
        rows = _rows_of(images, split, own or listing.undivided)
        learned = training.rows
        if _has(training, listing.train_split):
            learned = _rows_of(training, listing.train_split, True)
        labels = _labels_of(training, learned, class_to_idx, class_order)
        roots = [path.parent, *([Path(data_path)] if Path(data_path).is_dir() else [])]
        return cls(images, rows, roots, labels, decode, listing.may_miss, several=cells is not None)

    def load(self, index: int) -> tuple[Any, Any]:
        remedy = f"replace the file, or take its line out of {self.list}{OR_SKIP}"
        image = read_image(self.name(index), lambda: open_regular(self.path(index)), self.decode, remedy)
        return image, target_of(self.labels, index)


# Which list, and which of its rows


def _find_list(place: Path, name: str, split: str) -> tuple[Path, bool]:
    """The list, and whether it is the split's own."""
    if name:
        return place / name, False
    if not place.is_dir():
        return place, False
    found = next((path for path in _lists_of(place, split) if path.is_file()), None)
    if found is None:
        others = sorted(path.name for path in place.iterdir() if path.suffix.lower() in SUFFIXES[1:])
        one = f"the list ({', '.join(others[:SHOWN])})" if others else "the list"
        remedy = f"name {one} in DATA.LIST, or lists of the splits in DATA.TRAIN_SPLIT, DATA.VAL_SPLIT"
        raise DataError(str(place), f"has no list {split}.csv, .tsv, .txt or .jsonl", remedy)
    return found, True


def _lists_of(place: Path, split: str) -> list[Path]:
    return [place / f"{split}{suffix}" for suffix in SUFFIXES]


def _without_suffix(split: str) -> str:
    stem, suffix = os.path.splitext(os.path.basename(split))
    return stem if suffix.lower() in SUFFIXES else stem + suffix


def _split_named(text: Optional[str]) -> str:
    """A split's name in one spelling."""
    lowered = (text or "").lower()
    return SAME_SPLITS.get(lowered, lowered)


def _has(images: ImageList, split: str) -> bool:
    return any(row.split is not None and _split_named(row.split) == _split_named(split) for row in images.rows)


def _rows_of(images: ImageList, split: str, undivided: bool) -> list[Row]:
    """The rows of a split.

    Args:
        undivided: whether all are taken where the list names no splits.
    """
    if split == ALL or (undivided and not images.has_splits):
        return images.rows
    where = str(images.path)
    if not images.has_splits:
        remedy = (
            "add a column 'split', or set DATA.VAL_SHARE; DATA.DATA_PATH may be a folder with a list for each split, and "
            f"DATA.VAL_SPLIT {ALL} evaluates on the whole list"
        )
        raise DataError(where, f"does not say which images are {split!r}", remedy)
    lacking = next((row for row in images.rows if not row.split), None)
    if lacking is not None:
        raise DataError(f"{where}: line {lacking.line}", f"has no split for {lacking.path!r}", "complete the line")
    rows = [row for row in images.rows if _split_named(row.split) == _split_named(split)]
    if not rows:
        there = ", ".join(sorted({repr(row.split) for row in images.rows})[:8])
        raise DataError(
            where, f"has no image of the split {split!r}, but of {there}", "name it in DATA.TRAIN_SPLIT, DATA.VAL_SPLIT"
        )
    return rows


def _normal(row: Row) -> str:
    return os.path.normpath(row.path)


def _require_one_split(images: ImageList) -> None:
    """Raises DataError: an image is in two splits of a list."""
    seen: dict[str, Row] = {}
    for row in images.rows:
        other = seen.setdefault(_normal(row), row)
        if _split_named(other.split) != _split_named(row.split):
            reason = f"{row.path!r} is in {row.split!r}, and by line {other.line} in {other.split!r}"
            raise DataError(f"{images.path}: line {row.line}", reason, "leave it in one of them")


def _training_list(
    place: Path, train_split: str, columns: Sequence[str], cells: Optional[LabelCells]
) -> Optional[ImageList]:
    """The training images' own list; None where there is none, as an evaluation needs none."""
    path = next((path for path in _lists_of(place, train_split) if path.is_file()), None)
    return read_list(path, columns, cells) if path is not None else None


def _require_apart(images: ImageList, training: ImageList) -> None:
    """Raises DataError: a list names an image that the training images' list names, too."""
    if images.path == training.path:
        return
    lines = {_normal(row): row.line for row in training.rows}
    for row in images.rows:
        if _normal(row) in lines:
            reason = f"{row.path!r} is named by {training.path.name} in line {lines[_normal(row)]}, too"
            raise DataError(f"{images.path}: line {row.line}", reason, "leave it in one of them")


def _each_once(path: Path, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows without those that name an image again, and a line of these.

    Raises:
        DataError: an image has other labels in another row.
    """
    seen: dict[str, Row] = {}
    again: list[Row] = []
    for row in rows:
        other = seen.setdefault(_normal(row), row)
        if other is row:
            continue
        if set(other.labels) != set(row.labels):
            texts = [", ".join(map(repr, one.labels)) or "none" for one in (row, other)]
            reason = f"{row.path!r} has the label {texts[0]}, but by line {other.line} {texts[1]}"
            raise DataError(f"{path}: line {row.line}", reason, "leave one of them")
        again.append(row)
    if not again:
        return list(rows), []
    first, other = again[0], seen[_normal(again[0])]
    example = f"such as {first.path!r} in the lines {other.line} and {first.line}"
    return list(seen.values()), [f"{path}: lines that name an image again are left out: {len(again)} ({example})"]


# Labels


def _labels_of(
    images: ImageList, learned: Iterable[Row], class_to_idx: Optional[Mapping[str, int]], class_order: str
) -> Labels:
    """The classes: as a class map names them, or the list's first line; else those of the training images."""
    texts = {text for row in learned for text in row.labels}
    if not texts:
        raise DataError(str(images.path), "no training image has a label", "give those that have one theirs")
    numbers = all(map(_is_number, texts))
    if class_to_idx is None and not images.classes:
        if numbers:
            ordered = sorted(texts, key=int)
            order = f"its labels in the order of their numbers, {ordered[0]} to {ordered[-1]}"
        else:
            ordered = (timm_order if class_order == "timm" else torchvision_order)(texts)
            order = f"its labels, sorted (DATA.CLASS_ORDER {class_order}): {ordered[0]!r} is 0"
        return Labels(ordered, {text: label for label, text in enumerate(ordered)}, order)
    where = "its first line" if class_to_idx is None else "DATA.CLASS_MAP"
    named = {name: label for label, name in enumerate(images.classes)} if class_to_idx is None else dict(class_to_idx)
    classes = sorted(named, key=named.__getitem__)
    order = f"those of {where}, in its order: {classes[0]!r} is 0"
    if numbers and not texts & set(named):
        return Labels(
            classes, {str(label): label for label in range(len(classes))}, f"{order}; labels are their numbers"
        )
    return Labels(classes, named, order, partial=class_to_idx is not None)


def _is_number(text: str) -> bool:
    """Whether a label is one, not a name such as 007."""
    return text.isascii() and text.isdecimal() and str(int(text)) == text


def _known(path: Path, rows: list[Row], labels: Labels) -> tuple[list[Row], list[str]]:
    """The rows of the classes, and a line of those that are left out as a class map does not name theirs.

    Raises:
        DataError: a row's label is that of no class.
    """
    others = [row for row in rows if row.labels[0] not in labels.by_text]
    if not others:
        return rows, []
    first = others[0]
    if not labels.partial or len(others) == len(rows):
        raise _of_no_class(path, first.line, first.labels[0], labels)
    note = f"left out images of labels that the class map does not name: {len(others)} (such as {first.labels[0]!r} in line {first.line})"
    return [row for row in rows if row.labels[0] in labels.by_text], [f"{path}: {note}"]


def _with_known(path: Path, rows: list[Row], labels: Labels) -> tuple[list[Row], list[str]]:
    """The rows with those of their labels that are classes', of which an image may have none, and a line of the others,
    which a class map does not name.

    Raises:
        DataError: as `_known`.
    """
    others = [(row.line, text) for row in rows for text in row.labels if text not in labels.by_text]
    if not others:
        return rows, []
    line, text = others[0]
    if not labels.partial or not any(set(row.labels) & set(labels.by_text) for row in rows):
        raise _of_no_class(path, line, text, labels)
    note = f"left out labels that the class map does not name, not their images: {len(others)} (such as {text!r} in line {line})"
    rows = [row._replace(labels=tuple(text for text in row.labels if text in labels.by_text)) for row in rows]
    return rows, [f"{path}: {note}"]


def _of_no_class(path: Path, line: int, text: str, labels: Labels) -> DataError:
    reason = f"{text!r} is none of the {len(labels.classes)} classes, which are {labels.order}"
    remedy = "correct the label, or name all classes in a text file and give it as DATA.CLASS_MAP"
    return DataError(f"{path}: line {line}", reason, remedy)


# Files


def _root_of(rows: Sequence[Row], roots: Sequence[Path]) -> Path:
    """The first folder that has a file of the first rows; the first one where none has."""
    return next((root for root in roots if any((root / row.path).exists() for row in rows[:TRIED])), roots[0])


def _require_files(path: Path, rows: Sequence[Row], root: Path) -> None:
    """Raises DataError: a row names no file."""
    missing = []
    for row in rows:
        place = os.path.join(root, row.path)
        reading(place)
        try:
            if not stat.S_ISREG(os.stat(place).st_mode):
                missing.append(row)
        except OSError:
            missing.append(row)
    if missing:
        more = f"; so do {len(missing) - 1} more lines" if len(missing) > 1 else ""
        reason = f"{missing[0].path!r} is no file in {root}{more}"
        remedy = f"correct the list; its paths are relative to it or to DATA.DATA_PATH{OR_SKIP}"
        raise DataError(f"{path}: line {missing[0].line}", reason, remedy)


def _keys(rows: Sequence[Row], classes: Sequence[str]) -> list[str]:
    """<class>/<file> of each row, as folders have it; with all of its path where that is not unique."""
    paths = [_normal(row).lstrip("/") for row in rows]
    short = [_from_folder(path, name) for path, name in zip(paths, classes)]
    if len(set(short)) == len(short):
        return short
    return [f"{name}/{path}" for path, name in zip(paths, classes)]


def _from_folder(path: str, name: str) -> str:
    """A path from the class' folder on; with the class before it where there is no such folder."""
    _, folder, after = f"/{path}".rpartition(f"/{name}/")
    return f"{name}/{after}" if folder else f"{name}/{path}"
