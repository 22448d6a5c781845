"""A conversion's hold on its output folder: with which arguments it was begun, whether there is room, how far it is."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any, Iterator, Sequence

from tqdm import tqdm

from utils.errors import ConfigError, DataError, OutputError, UserError
from utils.files import remove_unfinished, write_json
from utils.lock import RunLock

GB = 1e9
MARGIN = 0.01  # of the size: what a file system itself needs


@contextlib.contextmanager
def holding(output: Path, kind: str, arguments: dict[str, Any], made: Sequence[str]) -> Iterator[None]:
    """Holds `output` for this conversion alone.

    Args:
        output: the folder.
        kind: name of the format; its record in the folder is `.prepare_<kind>.json`.
        arguments: what the output is a function of; a record of others is refused.
        made: glob patterns of what the conversion makes; files of these names without a record are not its own.

    Raises:
        ConfigError: the folder holds such files of something else, or was begun with other arguments.
        OutputError: it cannot be written to, or another process does.
    """
    record, lock = output / f".prepare_{kind}.json", RunLock(output, "--output")
    lock.acquire()
    try:
        if record.exists():
            _require_same(output, record, arguments)
        else:
            for pattern in made:
                for path in output.glob(pattern):
                    raise ConfigError(
                        f"{path}: is there and was not made by this command; remove it, or give another --output"
                    )
            write_json(record, arguments)
        remove_unfinished(output)
        yield
    finally:
        lock.release()


def _require_same(output: Path, record: Path, arguments: dict[str, Any]) -> None:
    try:
        begun = json.loads(record.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{record}: cannot be read; remove {output} and start again") from error
    for name, value in arguments.items():
        if begun.get(name) != value:
            if name.startswith("--"):
                raise ConfigError(
                    f"{name}: is {_text(value)}, and {output} was begun with {_text(begun.get(name))}; give that, or another --output"
                )
            raise DataError(f"{name}: other than when {output} was begun; give another --output, or remove that one")


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def require_room(output: Path, needed: int) -> None:
    """
    Raises:
        OutputError: the file system has not `needed` bytes free.
    """
    needed = int(needed * (1 + MARGIN))
    free = shutil.disk_usage(output).free
    if needed > free:
        raise OutputError(
            f"{output}: {needed / GB:,.3f} GB are needed and {free / GB:,.3f} GB are free; free space or change --output"
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes what a full disk or missing permission raises one line about `path`; what is written so far is gone on with."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise OutputError(
            f"{error.filename or path}: cannot be written ({error.strerror or error}); free space or change --output, then start "
            "the same command again: it goes on"
        ) from error


class Progress:
    """A bar of images that says bytes per second too; without a terminal it is silent."""

    def __init__(self, name: str, total: int = 0):
        self.bar = tqdm(desc=name, total=total or None, unit=" images", disable=None, mininterval=0.5)
        self.bytes = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def skip(self, images: int) -> None:
        """Images that an earlier start has done."""
        if not self.bar.disable:
            self.bar.initial += images
            self.bar.n += images

    def add(self, num_bytes: int, images: int = 1) -> None:
        self.bytes += num_bytes
        if not self.bar.disable:
            seconds = self.bar.format_dict["elapsed"]
            self.bar.set_postfix_str(f"{self.bytes / 1e6 / max(seconds, 1e-3):.0f} MB/s", refresh=False)
            self.bar.update(images)
