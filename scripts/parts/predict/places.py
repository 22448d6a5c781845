"""What predict.py reads besides images, and where it writes; needs no torch, so that mistakes are found at once."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator, Mapping, Optional

from utils.errors import ConfigError, OutputError, printable
from utils.files import atomic_write

STANDARD = "-"  # input or output
OUTPUTS = ("csv", "json", "sheet", "embeddings")
SUFFIXES = {"sheet": (".png",), "embeddings": (".npz", ".parquet")}  # which say what is written


def say(line: str) -> None:
    """On standard error, above the progress bar."""
    from tqdm import tqdm  # of requirements.txt, which `importing` has found

    tqdm.write(printable(line), file=sys.stderr)


def standard_input() -> list[str]:
    """The paths on it, one in each line, whatever bytes they are of."""
    lines = sys.stdin.buffer.read().split(b"\n") if sys.stdin else []
    return [os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip()]


def require_usable(outputs: dict[str, str]) -> None:
    """Finds out before hours of work, and without writing a file, what cannot be written at their end.

    Raises:
        ConfigError: a name that cannot be used.
        OutputError: no place that can be written to.
    """
    places = [os.path.abspath(path) for path in outputs.values()]
    for kind, path in outputs.items():
        if places.count(os.path.abspath(path)) > 1:
            raise ConfigError(f"--{kind} {path}: is another output, too; give each a file of its own")
        if not path.lower().endswith(suffixes := SUFFIXES.get(kind, ("",))):
            written = " or ".join(suffix[1:].upper() for suffix in suffixes)
            raise ConfigError(
                f"--{kind} {path}: is written as {written}; give a name that ends with {' or '.join(suffixes)}"
            )
        if path == STANDARD:
            continue
        # A link would be replaced, not what it leads to; /dev/stdout is one.
        if (
            not path
            or path.endswith(os.sep)
            or os.path.islink(path)
            or (os.path.exists(path) and not os.path.isfile(path))
        ):
            raise ConfigError(f"--{kind} {path or repr(path)}: is no regular file; give a file's name")
        existing = next(folder for folder in Path(path).absolute().parents if folder.exists())
        try:
            with contextlib.suppress(FileNotFoundError):
                os.stat(path)  # refuses a name that is too long
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            raise OutputError(
                f"--{kind} {path}: cannot be written ({error.strerror}); give a file in another folder"
            ) from error


def require_no_input(outputs: dict[str, str], inputs: Mapping[str, Iterable[str]]) -> None:
    """Raises ConfigError for an output that would replace an input, whatever the names of both; `inputs` says what they are."""
    there = {
        identity: (kind, path) for kind, path in outputs.items() if path != STANDARD and (identity := identity_of(path))
    }
    for what, paths in inputs.items():
        for found in (there.get(identity_of(path)) for path in paths if there):
            if found:
                raise ConfigError(f"--{found[0]} {found[1]}: is one of the {what}, too; give another name")


def identity_of(path: str) -> Optional[tuple[int, int]]:
    """The same for all names of a file; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: of a name with a NUL
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def opened(kind: str, path: str) -> Iterator[BinaryIO]:
    """An output, to be written to."""
    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with atomic_write(path, flag=f"--{kind}") as file:
        yield file
