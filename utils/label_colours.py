"""Colours for the classes of pixels."""

import colorsys
from functools import lru_cache

import numpy as np

GOLDEN = 0.618034  # hues at steps of the golden ratio stay apart, however many there are
GREY = (127, 127, 127)


@lru_cache
def colours(count: int) -> np.ndarray:
    """RGB of so many classes and, last, of what has none: (count + 1, 3), uint8."""
    rows = [colorsys.hsv_to_rgb(i * GOLDEN % 1, 0.55 + 0.4 * (i % 2), 0.95 - 0.2 * (i // 2 % 3)) for i in range(count)]
    return np.array([*(tuple(round(255 * level) for level in row) for row in rows), GREY], np.uint8)


def coloured(labels: np.ndarray, count: int) -> np.ndarray:
    """Labels (H, W) below `count`, negative where there is none, as an RGB picture (H, W, 3)."""
    return colours(count)[np.where(labels < 0, count, labels)]


def over(picture: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The labels' colours, half transparent, over an RGB picture (H, W, 3), which stays as it is where there is none."""
    mixed = (picture.astype(np.uint16) + coloured(labels, count)) // 2
    return np.where((labels < 0)[..., None], picture, mixed).astype(np.uint8)
