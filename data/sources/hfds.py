"""Hugging Face data sets on disk, parquet files for instance, by the `datasets` library."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Mapping, Optional, Sequence

import numpy as np

from utils.errors import ConfigError, DataError, one_line
from utils.rng import fingerprint

from ..class_maps import classes_for, unnamed_classes, wordnet_ids
from ..label_sets import AnyLabels, LabelCells, LabelSets, target_of
from .columns import file_in, is_bytes, is_text, key_of, label_sets_of, labels_of
from .reading import OR_SKIP, printable, read_image

SEVERAL = "labels"  # a column of several labels, where DATA.COLUMNS names no other
SPLITS = {"val": ("val", "validation", "test")}  # what the hub calls our validation split


class HfdsSource:
    """A split of a folder that `datasets.load_dataset` reads, such as a copy of a data set's repository on the hub.

    `datasets` keeps a copy of the images in its own cache (HF_DATASETS_CACHE), made when a set is first read.

    Args:
        root: the folder.
        split: of the data set.
        columns: names of the columns of images (files' bytes, or their paths in the folder) and labels.
        num_classes, class_to_idx: where the labels' column holds numbers without names, see `classes_for`.
        decode: open file -> image.
        cells: take the labels of an image apart, which may have several, or none; None: each image has one.

    Raises:
        ConfigError: `datasets` is not installed.
        DataError: the folder, the split or a column is missing, a file is damaged, or a label is none.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        columns: Sequence[str],
        num_classes: int,
        class_to_idx: Optional[Mapping[str, int]],
        decode: Callable[[BinaryIO], Any],
        cells: Optional[LabelCells] = None,
    ):
        if not root.is_dir():
            raise DataError(
                f"{root}: no such folder; DATA.DATA_PATH (--data-path) must hold parquet files, see scripts/prepare_data.py parquet"
            )
        image, label = columns
        rows = _load(root, split)
        notes = _ignored_tables(rows, root)
        if cells and label == "label" and SEVERAL in rows.column_names:
            label = SEVERAL
        for column in (image, label):
            if column not in rows.column_names:
                there = f"has no column {column!r}, but {', '.join(rows.column_names)}"
                way_out = "name its images and labels in DATA.COLUMNS"
                raise DataError("; ".join([f"{root}: {there}", way_out, *notes]))
        import pyarrow.compute as pc

        rows = _with_files(rows, image, root)
        self.rows, self.column, self.root, self.decode = rows, image, root, decode
        labels, names = self._labels_in(rows.data.column(label), label, split, cells)
        if names is not None:
            notes.append(f"{root}: its classes are the names in the column {label!r}")
        self.notes = notes
        feature = rows.features[label]
        given = getattr(getattr(feature, "feature", feature), "names", None)  # of numbers, in lists or not
        classes = names or (wordnet_ids(given) if given else classes_for(num_classes, class_to_idx))
        flat = labels.labels if isinstance(labels, LabelSets) else labels
        if len(flat) == 0 or flat.min() < 0 or flat.max() >= len(classes):
            there = f"labels from {flat.min()} to {flat.max()}" if len(flat) else "no images with labels"
            raise DataError(
                f"{root}: {split!r} has {there}, of {len(classes)} classes; choose a split with labels (DATA.VAL_SPLIT)"
            )
        self._take(labels, flat, classes, class_to_idx)
        paths = pc.struct_field(rows.data.column(image), "path").to_pylist()
        self.keys = np.array([os.fsencode(key) for key in self._keys(paths)])
        self.fingerprint = fingerprint(self.keys.tolist())

    @classmethod
    def open(
        cls, split: str, data_path: str, num_classes: int, columns, class_to_idx, decode: Callable, cells=None, **_
    ) -> "HfdsSource":
        if not data_path:
            raise DataError("DATA.DATA_PATH: is not set; give --data-path, the folder that holds the parquet files")
        return cls(Path(data_path), split, columns, num_classes, class_to_idx, decode, cells)

    def _labels_in(
        self, column: Any, name: str, split: str, cells: Optional[LabelCells]
    ) -> tuple[AnyLabels, Optional[list[str]]]:
        """Each row's label, or labels, and the classes' names; see `labels_of`."""
        where = f"{self.root}: {split!r}"
        if cells is None:
            return labels_of(column, name, where)
        labels, ends, names = label_sets_of(column, name, where, cells)
        return LabelSets(labels, ends, int(labels.max(initial=-1)) + 1), names

    def _take(
        self, labels: AnyLabels, flat: np.ndarray, classes: list[str], class_to_idx: Optional[Mapping[str, int]]
    ) -> None:
        """Sets classes, labels and the rows that are `chosen`: those of a class map's classes; of rows that may have
        several labels all, without labels that it does not name.

        Args:
            flat: all labels.

        Raises:
            DataError: the map names none of the classes that are there.
        """
        self.classes, table = classes, np.arange(len(classes))
        if class_to_idx is not None:
            present = [classes[label] for label in np.unique(flat)]
            self.notes.extend(unnamed_classes(self.root, present, class_to_idx, "label"))
            table = np.array([class_to_idx.get(name, -1) for name in classes])
            self.classes = sorted(class_to_idx, key=class_to_idx.__getitem__)
            if not (table[flat] >= 0).any():
                raise DataError(
                    f"{self.root}: none of its classes, {classes[0]!r} and so on, is in the class map; check DATA.CLASS_MAP"
                )
        self.chosen = np.arange(len(labels))
        self.labels: AnyLabels
        if isinstance(labels, LabelSets):
            self.labels = labels.renumbered(table, len(self.classes))
        else:
            self.chosen = np.flatnonzero(table[labels] >= 0)
            self.labels = table[labels][self.chosen]

    def _keys(self, paths: list[Optional[str]]) -> list[str]:
        """Of the chosen rows, by the paths of all; of rows that may have several labels their paths, or numbers."""
        if isinstance(self.labels, LabelSets):
            unique = None not in paths and len(set(paths)) == len(paths)
            return [str(paths[row]) if unique else f"{row}" for row in self.chosen]
        labelled = zip(self.chosen, self.labels)
        return [key_of(paths[row] or f"{row}", self.classes[label]) for row, label in labelled]

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        return os.fsdecode(self.keys[index])

    def name(self, index: int) -> str:
        return printable(f"{self.root}:{self.key(index)}")

    @contextlib.contextmanager
    def _opened(self, index: int) -> Iterator[BinaryIO]:
        cell = self.rows[int(self.chosen[index])][self.column]
        if cell is None or not (cell["bytes"] or cell["path"]):
            raise OSError("it has no bytes")
        if cell["bytes"]:
            yield io.BytesIO(cell["bytes"])
        else:
            with open(file_in(self.root, cell["path"]), "rb") as file:
                yield file

    def read(self, index: int) -> bytes:
        """The bytes of an image's file. Raises OSError."""
        with self._opened(index) as file:
            return file.read()

    def load(self, index: int) -> tuple[Any, Any]:
        remedy = f"make the parquet file anew without it{OR_SKIP}"
        image = read_image(self.name(index), lambda: self._opened(index), self.decode, remedy)
        return image, target_of(self.labels, index)


def _ignored_tables(rows: Any, root: Path) -> list[str]:
    """A line of the parquet files, if `datasets` reads images instead, as it does where a split has a folder."""
    tables = [*root.glob("*.parquet"), *root.glob("data/*.parquet")]
    if rows.info.builder_name != "imagefolder" or not tables:
        return []
    return [f"{root}: its folders of images are read, not {tables[0].name}; move one of them to another place"]


def _with_files(rows: Any, column: str, root: Path) -> Any:
    """The rows with cells of `bytes` and `path` in a column of these, of bytes alone, or of paths of files in `root`.

    Raises:
        DataError: it holds something else.
    """
    import datasets
    import pyarrow as pa

    stored = rows.data.schema.field(column).type
    has_bytes = pa.types.is_struct(stored) and "bytes" in {field.name for field in stored}
    if not (has_bytes or is_bytes(stored) or is_text(stored)):
        kind = rows.features[column]
        what = f"the column {column!r} holds no image files but {kind}"
        raise DataError(f"{root}: {what}; name another in DATA.COLUMNS")
    return rows.cast_column(column, datasets.Image()).cast_column(column, datasets.Image(decode=False))


def _load(root: Path, split: str):
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"DATA.DATASET hfds: {error.name} cannot be imported; pip install datasets") from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        names = datasets.get_dataset_split_names(str(root))
        there = next((name for name in SPLITS.get(split, (split,)) if name in names), None)
        if there is None:
            raise DataError(
                f"{root}: has no split {split!r}, but {', '.join(names)}; name it in DATA.TRAIN_SPLIT or DATA.VAL_SPLIT"
            )
        return datasets.load_dataset(str(root), split=there)
    except (OSError, ValueError, TypeError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = one_line(error.__cause__ or error, 200)
        raise DataError(
            f"{root}: cannot be read by datasets ({reason}); give a folder of whole parquet files"
        ) from error
