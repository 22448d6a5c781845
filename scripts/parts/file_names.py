"""Names for what scripts write of images."""

import re
from pathlib import Path
from typing import Sequence


def names_of(paths: Sequence[Path | str]) -> list[str]:
    """Images' names for file names: their own without the suffix, with a number where another one has the same."""
    names: list[str] = []
    for path in paths:
        plain = re.sub(r"[^\w.-]+", "_", Path(path).stem)[:60] or "image"
        candidates = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(paths) + 1))
        names.append(next(name for name in candidates if name not in names))
    return names
