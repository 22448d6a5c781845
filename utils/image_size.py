"""Sizes of images: one number, the side of a square, or [height, width]. Both are px."""

from typing import Sequence, Union

Size = Union[int, Sequence[int]]
FrozenSize = Union[int, tuple[int, int]]  # the same, to stand in a set or as a dictionary's key


def height_and_width(size: Size) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def frozen(size: Size) -> FrozenSize:
    return size if isinstance(size, int) else height_and_width(size)


def size_text(size: Size) -> str:
    """'224', or '192x320': height x width."""
    return "x".join(map(str, size)) if isinstance(size, (list, tuple)) else str(size)
