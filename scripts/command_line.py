"""Makes the project's packages importable from a script that is started by its path, and hands on what command lines share."""

import contextlib
import sys
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import Parser, add_weights, not_negative, number, whole_number  # noqa: E402, F401
from utils.ending import run_script  # noqa: E402, F401
from utils.errors import ConfigError  # noqa: E402


@contextlib.contextmanager
def importing(requirements: str = "-r requirements.txt") -> Iterator[None]:
    """Says which package is missing, where the parts of a script are imported, and how to get it."""
    try:
        yield
    except ImportError as error:
        name = error.name or "a package"
        raise ConfigError(f"{name}: cannot be imported ({error}); pip install {requirements}") from error
