"""What the columns of a parquet file say of an image: its class by number or name, and its file's name."""

import os
import re
from pathlib import Path
from typing import Any, Optional

import numpy as np

from utils.errors import DataError

from ..label_sets import LabelCells


def labels_of(column: Any, name: str, where: str) -> tuple[np.ndarray, Optional[list[str]]]:
    """Each row's label, and the classes' names in label order; None where the column holds numbers.

    Names are numbered by code points, as folders are: also '10' and '2', which are names if they are text. Truth values
    are the classes False and True, also where only one of them is there.

    Args:
        column: pyarrow's ChunkedArray.
        name, where: of the column and of its table, for messages.

    Raises:
        DataError: a row has no label, or the column holds neither numbers nor names.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    _require_all(pc.is_null(column), name, where)
    try:
        if types.is_boolean(column.type):
            return column.cast(pa.int8()).to_numpy().astype(np.int64), ["False", "True"]
        if is_text(column.type) or is_bytes(column.type):
            texts = column.cast(pa.large_string())
            _require_all(pc.equal(texts, ""), name, where)
            names = sorted(pc.unique(texts).to_pylist())
            return pc.index_in(texts, pa.array(names, pa.large_string())).to_numpy().astype(np.int64), names
        values = column.to_numpy()
        labels = np.array(values, dtype=np.int64)
        if types.is_floating(column.type) and (labels != values).any():
            raise ValueError
        return labels, None
    except (ValueError, TypeError, OverflowError) as error:  # pyarrow's, of bytes that are no text, is a ValueError
        what = f"the column {name!r} holds no numbers or names"
        several = ", or set TASK multilabel for several labels of an image" if types.is_nested(column.type) else ""
        raise DataError(f"{where}: {what}; name another in DATA.COLUMNS{several}") from error


def label_sets_of(
    column: Any, name: str, where: str, cells: LabelCells
) -> tuple[np.ndarray, np.ndarray, Optional[list[str]]]:
    """The labels of rows that may have several, or none: all of them one after the other, each row's end among them, and
    the classes' names as `labels_of` has them.

    Args:
        column: pyarrow's ChunkedArray of lists, of texts that name several, or of one number or name a row.
        cells: take texts apart.

    Raises:
        DataError: as `labels_of`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    kind = column.type
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        rows = column.to_pylist()
        if is_text(kind):
            rows = [list(cells.labels_of(text or "", f"{where}: row {row}")) for row, text in enumerate(rows)]
        else:
            rows = [[] if label is None else [label] for label in rows]
        column = pa.chunked_array([pa.array(rows, pa.list_(kind))])
    ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy(), dtype=np.int64)
    labels, names = labels_of(pc.list_flatten(column), name, where)
    return labels, ends, names


def is_text(kind: Any) -> bool:
    """Whether pyarrow's type is one of strings."""
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def is_bytes(kind: Any) -> bool:
    """Whether pyarrow's type is one of bytes."""
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def key_of(path: str, name: str) -> str:
    """<class>/<file>, of a file's path and its class' name.

    The hub's ImageNet has the class once more at the end of its files' names.
    """
    if path.startswith(f"{name}/"):
        return path
    stem, dot, extension = path.rsplit("/", 1)[-1].rpartition(".")
    return f"{name}/{re.sub(f'_{re.escape(name)}$', '', stem)}{dot}{extension}"


def file_in(root: Path, path: str) -> Path:
    """The file of a path that a cell names.

    Raises:
        OSError: it is no file in the folder.
    """
    resolved = os.path.realpath(root / path)
    inside = resolved.startswith(os.path.realpath(root) + os.sep)
    if not (inside and os.path.isfile(resolved)):  # a pipe would wait for ever
        raise OSError(f"no file in {root}, {path!r}")
    return Path(resolved)


def _require_all(lacking: Any, name: str, where: str) -> None:
    import pyarrow.compute as pc

    count = pc.sum(lacking).as_py()
    if count:
        row = pc.index(lacking, True).as_py()
        raise DataError(
            f"{where}: {count} of {len(lacking)} rows have no label in the column {name!r}, such as row {row} "
            "(counted from 0); make the files anew without them, or name another column in DATA.COLUMNS"
        )
