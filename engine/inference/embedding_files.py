"""Files of embeddings: .npz of NumPy, .parquet of Apache Arrow."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.errors import ConfigError, DataError, one_line
from utils.files import require_no_device

UNKNOWN = -1  # in a label's place
SUFFIXES = (".npz", ".parquet")


@dataclass(frozen=True)
class Embeddings:
    """Of N images, in the order in which they were given."""

    paths: list[str]
    labels: np.ndarray  # int64 (N,), of `classes`; UNKNOWN where not known
    vectors: np.ndarray  # float32 (N, D)
    classes: list[str]  # those of the model, in label order
    facts: dict[str, Any]  # what made them

    def name(self, row: int) -> str:
        """The class of an image; '' where it is not known."""
        return "" if self.labels[row] == UNKNOWN else self.classes[self.labels[row]]


def write_embeddings(values: Embeddings, suffix: str, file: BinaryIO) -> None:
    """Writes into an open file.

    - .npz: arrays `path`, `label` (-1: not known), `vector`, `classes`, and `facts` as JSON; read without pickle.
    - .parquet: columns path, label (null: not known), vector; classes and facts as JSON in the schema's metadata.
    """
    if suffix == ".npz":
        np.savez(
            file,
            path=np.array(values.paths),
            label=values.labels,
            vector=values.vectors,
            classes=np.array(values.classes),
            facts=np.array(json.dumps(values.facts)),
        )
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.array(values.vectors.reshape(-1), pa.float32())
    columns = {
        "path": pa.array([path.encode(errors="backslashreplace").decode() for path in values.paths]),
        "label": pa.array(values.labels, mask=values.labels == UNKNOWN),
        "vector": pa.FixedSizeListArray.from_arrays(flat, values.vectors.shape[1]),
    }
    metadata = {"classes": json.dumps(values.classes), "facts": json.dumps(values.facts)}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), file)


def read_embeddings(path: Path) -> Embeddings:
    """The embeddings of a file that scripts/predict.py has written.

    Raises:
        DataError: it cannot be read, or is something else.
        ConfigError: its suffix is none of `SUFFIXES`, or the package that reads it is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(str(path), f"is no file of embeddings by its name ({' or '.join(SUFFIXES)})", "give another")
    try:
        require_no_device(path)
        values = _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
    except ImportError as error:
        raise ConfigError(str(path), f"{error.name} is not installed", "pip install pyarrow, or use .npz") from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        reason = f"cannot be read as embeddings ({one_line(error, 120)})"
        raise DataError(str(path), reason, "make them by scripts/predict.py --embeddings") from error
    if values.vectors.ndim != 2 or len(values.vectors) != len(values.paths):
        raise DataError(
            str(path), "has not one vector for each path", "make it anew by scripts/predict.py --embeddings"
        )
    return values


def _read_npz(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as arrays:
        return Embeddings(
            arrays["path"].tolist(),
            arrays["label"],
            arrays["vector"],
            arrays["classes"].tolist(),
            json.loads(str(arrays["facts"])),
        )


def _read_parquet(path: Path) -> Embeddings:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    vectors = table.column("vector").combine_chunks()
    labels = table.column("label").fill_null(UNKNOWN).to_numpy()
    return Embeddings(
        table.column("path").to_pylist(),
        labels,
        vectors.flatten().to_numpy().reshape(len(vectors), -1),
        json.loads(metadata[b"classes"]),
        json.loads(metadata[b"facts"]),
    )
