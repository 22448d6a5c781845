"""Makes the project's packages importable from a script that is started by its path, and hands on what command lines share."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import Parser, add_weights, image_size, importing, not_negative, number, whole_number  # noqa: E402, F401
from utils.ending import run_script  # noqa: E402, F401
