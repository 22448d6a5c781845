"""What a list of images says, line by line: CSV or TSV with a header, JSON lines, or Caffe's `path label`."""

import csv
import itertools
import json
import re
from pathlib import Path
from typing import Any, Iterable, Iterator, NamedTuple, Optional, Sequence

from utils.errors import DataError

from .image_files import has_image_suffix
from .label_sets import LabelCells
from .workers import reading

# Names of columns that are understood, without regard to capitals; DATA.COLUMNS names others.
PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
LABEL_NAMES = ("label", "class", "class_name", "category", "target")
SEVERAL_NAMES = ("labels", "classes", "class_names", "categories", "targets", "tags")  # of several labels, before these
SPLIT_NAMES = ("split", "set", "subset", "fold")
DELIMITERS = ",\t;"
WITH_HEADER = (".csv", ".tsv", ".tab")
JSON_LINES = (".jsonl", ".ndjson", ".json")
SEVERAL = "of images with several labels set TASK multilabel"
CLASSES = re.compile(r"\s*#\s*classes\s*:", re.IGNORECASE)  # how a first line begins that names the classes


class Row(NamedTuple):
    """An image of a list."""

    line: int  # where it stands, from 1
    path: str  # with / between folders
    labels: tuple[str, ...]  # classes' names, or numbers; one, where an image must have one
    split: Optional[str]  # None: the list says nothing of it


class ImageList(NamedTuple):
    """A list that was read."""

    path: Path
    rows: list[Row]
    classes: list[str]  # as its first line names them, in label order; else none
    notes: list[str]  # lines of what was understood in another way than it stands there

    @property
    def has_splits(self) -> bool:
        return any(row.split is not None for row in self.rows)


def read_list(path: Path, columns: Sequence[str] = ("image", "label"), cells: Optional[LabelCells] = None) -> ImageList:
    """All rows of a list, in its order.

    Its suffix says how it is written: .csv, .tsv and .tab have a header, .jsonl and .ndjson an object in each line, all
    others Caffe's lines. A first line `# classes: cat, dog`, or `{"classes": ["cat", "dog"]}`, names the classes.

    Args:
        path: of the list.
        columns: names of the columns of paths and labels; 'image' and 'label' stand for the usual ones.
        cells: take the labels of an image apart, which may have several, or none; None: each image has one.

    Raises:
        DataError: there is no such list, or a line of it cannot be understood.
    """
    if not path.is_file():
        raise DataError(
            str(path), "no such file", "DATA.DATA_PATH (--data-path) or DATA.LIST must name a list of images"
        )
    reading(str(path))
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            classes = _classes_in(first, path)
            lines = file if classes else itertools.chain([first], file)
            read = _reader_of(path)
            rows = list(_whole(path, read(path, lines, 1 if classes else 0, Reading(columns, cells))))
    except UnicodeDecodeError as error:
        raise DataError(str(path), "is no UTF-8 text", "save the list as UTF-8") from error
    if not rows:
        raise DataError(str(path), "names no image", "write a line for each image")
    rows, notes = _with_slashes(path, rows)
    if cells and cells.separator:
        notes.append(f"{path}: labels of an image are separated by {cells.separator!r} (DATA.LABEL_SEPARATOR)")
    return ImageList(path, rows, classes, notes)


class Reading(NamedTuple):
    """How rows are understood; see `read_list`."""

    columns: Sequence[str]
    cells: Optional[LabelCells]

    def names(self) -> list[tuple[str, ...]]:
        """That the columns of paths, labels and splits may have."""
        path, label = self.columns
        labels = (*SEVERAL_NAMES, *LABEL_NAMES) if self.cells else LABEL_NAMES
        return [PATH_NAMES if path == "image" else (path,), labels if label == "label" else (label,), SPLIT_NAMES]

    def labels_of(self, cell: str, where: str) -> tuple[str, ...]:
        return self.cells.labels_of(cell, where) if self.cells else (cell,)


def _reader_of(path: Path):
    suffix = path.suffix.lower()
    if suffix in WITH_HEADER:
        return _rows_with_header
    return _json_rows if suffix in JSON_LINES else _caffe_rows


def _at(path: Path, line: int) -> str:
    return f"{path}: line {line}"


def _classes_in(first: str, path: Path) -> list[str]:
    """The classes that a list's first line names; none where it is another line."""
    named = CLASSES.match(first)
    if named:
        names: Any = next(csv.reader([first[named.end() :].strip()], skipinitialspace=True), [])
    elif path.suffix.lower() in JSON_LINES and '"classes"' in first:
        classes = _object_in(first, _at(path, 1)).get("classes")
        if not isinstance(classes, list):
            raise DataError(_at(path, 1), "its classes are no list", 'write {"classes": ["cat", "dog"]}')
        names = classes
    else:
        return []
    names = [_as_text(name, _at(path, 1), "a class") for name in names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not all(names):
        reason = f"names the class {twice!r} twice" if twice else "names a class without a name"
        raise DataError(_at(path, 1), reason, "name each class once, with commas between")
    return names


def _whole(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows. Raises DataError: one has no path or no label."""
    for row in rows:
        lacks = "path" if not row.path else "label" if "" in row.labels else ""
        if lacks:
            about = f" for {row.path!r}" if row.path else ""
            raise DataError(_at(path, row.line), f"has no {lacks}{about}", "complete the line, or take it out")
        yield row


# CSV and TSV


def _rows_with_header(path: Path, lines: Iterable[str], skipped: int, how: Reading) -> Iterator[Row]:
    lines = iter(lines)
    header = next(lines, "")
    delimiter = max(DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    places = _places([name.strip() for name in names], how, _at(path, skipped + 1))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = skipped + 2 + reader.line_num  # a quoted cell may go over several
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                _at(path, line), f"is no line of a table ({error})", "put cells with quotes or delimiters into quotes"
            ) from error
        if cells is None:
            return
        if len(cells) > len(names):
            reason = f"has {len(cells)} cells, but the header {len(names)}"
            raise DataError(_at(path, line), reason, f"put a cell that holds {delimiter!r} into quotes")
        if any(cell.strip() for cell in cells):
            cells = [cell.strip() for cell in cells] + [""] * (len(names) - len(cells))
            split = None if places[2] is None else cells[places[2]]
            yield Row(line, cells[places[0]], how.labels_of(cells[places[1]], _at(path, line)), split)


def _places(names: list[str], how: Reading, where: str) -> tuple[int, int, Optional[int]]:
    """At which places of a row path, label and split stand."""
    lowered = [name.lower() for name in names]
    known = [[name.lower() for name in usual] for usual in how.names()]
    found = [next((lowered.index(name) for name in usual if name in lowered), None) for usual in known]
    if found[0] is not None and found[1] is not None:
        return found[0], found[1], found[2]
    image = next(filter(has_image_suffix, names), None)
    if image is not None:
        reason = f"is an image, {image!r}, where the names of the columns should stand"
        raise DataError(where, reason, "write path,label or path,label,split as the first line")
    missing = " and ".join(f"{wanted[0]!r}" for wanted, place in zip(how.names(), found[:2]) if place is None)
    there = ", ".join(map(repr, names[:8]))
    remedy = "name the columns in DATA.COLUMNS, or correct the line"
    if not how.cells and found[1] is None and set(lowered) & set(SEVERAL_NAMES):
        remedy = f"{remedy}; {SEVERAL}"
    raise DataError(where, f"has no column {missing} among {there}", remedy)


# JSON lines


def _json_rows(path: Path, lines: Iterable[str], skipped: int, how: Reading) -> Iterator[Row]:
    known = how.names()
    for line, text in enumerate(lines, skipped + 1):
        if not text.strip():
            continue
        where = _at(path, line)
        values = _object_in(text, where)
        image, label, split = (next((values[name] for name in names if name in values), None) for names in known)
        if image is None and not any(name in values for name in known[0]):
            there = ", ".join(map(repr, list(values)[:8])) or "nothing"
            remedy = f"give each line {known[0][0]!r} and {known[1][0]!r}, or name them in DATA.COLUMNS"
            raise DataError(where, f"has no {known[0][0]!r}, but {there}", remedy)
        labels = _labels_in(label, where, how)
        yield Row(
            line, _as_text(image, where, "a path"), labels, None if split is None else _as_text(split, where, "a split")
        )


def _labels_in(value: Any, where: str, how: Reading) -> tuple[str, ...]:
    """Of a list of labels, or of what a cell could hold."""
    if not isinstance(value, list):
        return how.labels_of(_as_text(value, where, "a label"), where)
    if not how.cells:
        raise DataError(where, f"{value!r} is not a label", f"a label must be a name or a whole number; {SEVERAL}")
    texts = [_as_text(label, where, "a label") for label in value]
    if "" in texts:
        raise DataError(where, "has a label without a name", "take it out; [] is an image without labels")
    return tuple(dict.fromkeys(texts))


def _object_in(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(where, f"is no JSON ({error})", "write an object in each line") from error
    if not isinstance(values, dict):
        raise DataError(where, "is no JSON object", 'write {"path": "cat/1.jpg", "label": "cat"}')
    return values


def _as_text(value: Any, where: str, what: str) -> str:
    """A name or a number as text; nothing as ''."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int)):
        return str(value).strip()
    raise DataError(where, f"{value!r} is not {what}", f"{what} must be a name or a whole number")


# Caffe


def _caffe_rows(path: Path, lines: Iterable[str], skipped: int, how: Reading) -> Iterator[Row]:
    for line, text in enumerate(lines, skipped + 1):
        text = text.strip()
        if not text or text.startswith("#"):
            continue
        parts = text.rsplit("\t", 1) if "\t" in text else text.rsplit(maxsplit=1)
        if len(parts) < 2 or has_image_suffix(parts[1]):
            header = " (a table with a header is called .csv or .tsv)" if "," in text else ""
            raise DataError(_at(path, line), f"has no label after {text[:80]!r}", f"write <path> <label>{header}")
        yield Row(line, parts[0].strip(), how.labels_of(parts[1].strip(), _at(path, line)), None)


# Windows


def _with_slashes(path: Path, rows: list[Row]) -> tuple[list[Row], list[str]]:
    r"""The rows with / where all paths have Windows' \ in its place, and a line that says so."""
    if any("/" in row.path for row in rows) or not any("\\" in row.path for row in rows):
        return rows, []
    note = f"{path}: its paths have \\ between folders, as of Windows; it is read as /"
    return [row._replace(path=row.path.replace("\\", "/")) for row in rows], [note]
