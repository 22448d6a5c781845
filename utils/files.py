"""Files that are either wholly there or not at all."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Iterator

from .errors import OutputError


@contextlib.contextmanager
def atomic_write(path: os.PathLike) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` for writing; at the end it is flushed to disk and takes `path`'s name.

    If anything fails, `path` is as it was and the temporary file is gone.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # makes the new name itself durable
        finally:
            os.close(directory)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); free space or change --output") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: os.PathLike, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: os.PathLike, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
