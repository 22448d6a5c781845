"""A folder that is there whole or not at all."""

import contextlib
import shutil
from pathlib import Path
from typing import Iterator

from utils.errors import ConfigError


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write to, which has the output's name once the block has ended without an error.

    Raises:
        ConfigError: there is something of that name, or it cannot be made.
    """
    if output.exists() or not output.name:
        raise ConfigError(f"{output}: is there and is no such set; give the name of a new folder")
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be made ({error.strerror}); give another folder") from error
    yield unfinished
    unfinished.rename(output)
