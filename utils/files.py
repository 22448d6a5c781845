"""Files that are either wholly there or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Optional, TypeGuard, Union

from .errors import DataError, OutputError, UserError

OF_THE_MACHINE = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT)


@contextlib.contextmanager
def atomic_write(path: os.PathLike, keep: Optional[os.PathLike] = None, flag: str = "--output") -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` for writing; at the end it is flushed to disk and takes `path`'s name.

    What was there before then has the name `keep`, if one is given; one of the two is there at any moment.

    If anything fails, what `path` was is still there (as `keep`, if only the last renaming fails), the temporary file not.

    Raises:
        OutputError: the file cannot be written; `flag` gives another one.
    """
    path = Path(path)
    start = os.fsdecode(os.fsencode(path.name)[:200])  # of a name as long as the file system takes
    temporary = path.with_name(f".{start}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            require_no_device(path)  # which would be replaced, for all programs of the machine
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(error.filename2 or path, error, flag) from error
    finally:
        # a file stands where the folder should be, or the disk is read-only: there is none
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: os.PathLike) -> None:
    """Makes the names in it durable."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def is_of_the_machine(error: BaseException) -> TypeGuard[OSError]:
    """Whether a file could not be read for reasons that are not the file's: another attempt may succeed."""
    return isinstance(error, OSError) and error.errno in OF_THE_MACHINE


def unreadable_now(path: object, error: OSError) -> OutputError:
    """The error of a file, where it `is_of_the_machine`."""
    return OutputError(str(path), f"cannot be read just now ({error.strerror})", "start the same command again")


def unreadable(where: object, error: OSError, remedy: str, kind: type[UserError] = DataError) -> UserError:
    """The error of a file that cannot be read: of this `kind`, unless it `is_of_the_machine`."""
    if is_of_the_machine(error):
        return unreadable_now(where, error)
    return kind(str(where), f"cannot be read ({error.strerror or error})", remedy)


def unwritable(path: os.PathLike, error: OSError, flag: str = "--output") -> OutputError:
    return OutputError(str(path), f"cannot be written ({error.strerror or error})", f"free space or change {flag}")


def unwritable_folder(path: os.PathLike, error: OSError) -> OutputError:
    """The error of a run's folder."""
    reason = f"cannot be written to ({error.strerror or error})"
    return OutputError(str(path), reason, "change --output or its permissions")


def require_no_device(path: Union[str, os.PathLike]) -> None:
    """Raises OSError for a pipe or a device, which reading would wait at for ever."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "is no regular file", str(path))


def open_regular(path: Union[str, os.PathLike]) -> BinaryIO:
    """The file, open for reading. Raises OSError as `open` does, and for a pipe or a device."""
    require_no_device(path)
    return open(path, "rb")


def sha256_of(path: os.PathLike) -> str:
    """The file's SHA-256, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def remove_unfinished(directory: Path) -> list[str]:
    """Removes what killed processes left of `atomic_write` in a folder that nobody else writes to; returns the names."""
    unfinished = [p for p in directory.glob(".*.tmp") if p.stem.rsplit(".", 1)[-1].isdigit() and not p.is_dir()]
    for path in unfinished:
        path.unlink(missing_ok=True)
    return [path.name for path in unfinished]


def write_text(path: os.PathLike, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # of names that are no UTF-8


def write_json(path: os.PathLike, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


class Appender:
    """A text file to which whole lines are added: a line that does not fit on the disk leaves nothing of it there."""

    def __init__(self, path: Path):
        self.path = path
        self.file = open(path, "ab", buffering=0)

    def write(self, text: str) -> None:
        """Raises OutputError."""
        data = text.encode()
        position = os.fstat(self.file.fileno()).st_size
        try:
            while data:
                data = data[self.file.write(data) :]
        except OSError as error:
            os.ftruncate(self.file.fileno(), position)
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        self.file.close()
