"""Hugging Face data sets on disk, parquet files for instance, by the `datasets` library."""

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Mapping, Optional, Sequence

import numpy as np

from utils.errors import ConfigError, DataError
from utils.rng import fingerprint

from ..class_maps import classes_for, wordnet_ids
from .reading import printable, read_image

SPLITS = {"val": ("val", "validation", "test")}  # what the hub calls our validation split


class HfdsSource:
    """A split of a folder that `datasets.load_dataset` reads, such as a copy of a data set's repository on the hub.

    `datasets` keeps a copy of the images in its own cache (HF_DATASETS_CACHE), made when a set is first read.

    Args:
        root: the folder.
        split: of the data set.
        columns: names of the columns of images (files' bytes) and labels.
        num_classes, class_to_idx: where the labels' column has no names, see `classes_for`.
        decode: open file -> image.

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
    ):
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; DATA.DATA_PATH (--data-path) must hold parquet files, see scripts/prepare_data.py parquet")
        image, label = columns
        rows = _load(root, split)
        for column in columns:
            if column not in rows.column_names:
                raise DataError(f"{root}: has no column {column!r}, but {', '.join(rows.column_names)}; name its images and labels in DATA.COLUMNS")
        import datasets
        import pyarrow as pa
        import pyarrow.compute as pc

        kind, labels = rows.features[image], rows.features[label]
        if not isinstance(kind, datasets.Image):
            stored = rows.data.schema.field(image).type
            if not (pa.types.is_struct(stored) and {"bytes", "path"} <= {field.name for field in stored}):
                raise DataError(f"{root}: the column {image!r} holds no image files but {kind}; name another in DATA.COLUMNS")
            rows = rows.cast_column(image, datasets.Image())
        rows = rows.cast_column(image, datasets.Image(decode=False))
        self.rows, self.column, self.root, self.decode = rows, image, root, decode
        given = rows.data.column(label)
        try:
            self.labels = np.array(given.to_numpy(), dtype=np.int64)
            if pa.types.is_floating(given.type) and not given.null_count and (self.labels != given.to_numpy()).any():
                raise ValueError
        except (ValueError, TypeError, OverflowError):
            raise DataError(f"{root}: the column {label!r} holds no numbers; name another in DATA.COLUMNS") from None
        own = wordnet_ids(labels.names) if isinstance(labels, datasets.ClassLabel) and labels.names else classes_for(num_classes, class_to_idx)
        if len(self.labels) == 0 or self.labels.min() < 0 or self.labels.max() >= len(own):
            found = f"labels from {self.labels.min()} to {self.labels.max()}" if len(self.labels) else "no images"
            raise DataError(f"{root}: {split!r} has {found}, of {len(own)} classes; choose a split with labels (DATA.VAL_SPLIT)")
        self.classes = own
        self.chosen = np.arange(len(self.labels))
        if class_to_idx is not None:
            table = np.array([class_to_idx.get(name, -1) for name in own])
            self.chosen = np.flatnonzero(table[self.labels] >= 0)
            self.labels = table[self.labels][self.chosen]
            self.classes = sorted(class_to_idx, key=class_to_idx.__getitem__)
            if not len(self.chosen):
                raise DataError(f"{root}: none of its classes, {own[0]!r} and so on, is in the class map; check DATA.CLASS_MAP")
        paths = pc.struct_field(rows.data.column(image), "path").to_pylist()
        self.keys = np.array([os.fsencode(self._key(paths[i] or f"{i}", int(self.labels[n]))) for n, i in enumerate(self.chosen)])
        self.fingerprint = fingerprint(self.keys.tolist())

    @classmethod
    def open(cls, split: str, data_path: str, num_classes: int, columns, class_to_idx, decode: Callable, **_) -> "HfdsSource":
        if not data_path:
            raise DataError("DATA.DATA_PATH: is not set; give --data-path, the folder that holds the parquet files")
        return cls(Path(data_path), split, columns, num_classes, class_to_idx, decode)

    def __len__(self) -> int:
        return len(self.labels)

    def _key(self, path: str, label: int) -> str:
        """<class>/<file>; the hub's ImageNet has the class once more at the end of its files' names."""
        name = self.classes[label]
        stem, dot, extension = path.rsplit("/", 1)[-1].rpartition(".")
        return f"{name}/{re.sub(f'_{re.escape(name)}$', '', stem)}{dot}{extension}"

    def key(self, index: int) -> str:
        return os.fsdecode(self.keys[index])

    def name(self, index: int) -> str:
        return printable(f"{self.root}:{self.key(index)}")

    def load(self, index: int) -> tuple[Any, int]:
        @contextlib.contextmanager
        def opened() -> Iterator[BinaryIO]:
            cell = self.rows[int(self.chosen[index])][self.column]
            if cell is None or not (cell["bytes"] or cell["path"]):
                raise OSError("it has no bytes")
            if cell["bytes"]:
                yield io.BytesIO(cell["bytes"])
            else:
                path = os.path.realpath(self.root / cell["path"])
                if not (path.startswith(os.path.realpath(self.root) + os.sep) and os.path.isfile(path)):  # a pipe would wait for ever
                    raise OSError(f"no file in {self.root}, {cell['path']!r}")
                with open(path, "rb") as file:
                    yield file

        return read_image(self.name(index), opened, self.decode, "make the parquet file anew without it"), int(self.labels[index])


def _load(root: Path, split: str):
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"DATA.DATASET hfds: {error.name} cannot be imported; pip install datasets") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        names = datasets.get_dataset_split_names(str(root))
        known = next((name for name in SPLITS.get(split, (split,)) if name in names), None)
        if known is None:
            raise DataError(f"{root}: has no split {split!r}, but {', '.join(names)}; name it in DATA.TRAIN_SPLIT or DATA.VAL_SPLIT")
        return datasets.load_dataset(str(root), split=known)
    except (OSError, ValueError, TypeError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise DataError(f"{root}: cannot be read by datasets ({reason}); give a folder of whole parquet files") from None
