"""Line charts for a page: where lines, ticks and labels lie. The page's template draws and styles them."""

import math
from dataclasses import dataclass, field
from typing import Mapping, Optional, Sequence

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 36  # margins
MOST_POINTS = 600  # of a line

Points = Sequence[tuple[float, Optional[float]]]


@dataclass(frozen=True)
class Line:
    """A drawn line: `path` in SVG's language, `dots` where a point has no neighbours, `last` its last value."""

    name: str
    style: int
    path: str
    dots: list[tuple[float, float]]
    last: str


@dataclass(frozen=True)
class Chart:
    title: str
    label: str  # what it shows, in words
    x_label: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = field(default=WIDTH, init=False)
    height: int = field(default=HEIGHT, init=False)
    left: int = field(default=LEFT, init=False)
    right: int = field(default=WIDTH - RIGHT, init=False)
    bottom: int = field(default=HEIGHT - BOTTOM, init=False)


def chart(title: str, x_label: str, series: Mapping[str, Points], styles: Mapping[str, int]) -> Optional[Chart]:
    """A chart of the named lines that have points; None if none has.

    Args:
        series: (x, y) by rising x; a y of None is a gap.
        styles: of lines by name; 0 for others.
    """
    series = {name: thinned(points) for name, points in series.items() if any(y is not None for _, y in points)}
    if not series:
        return None
    known = [(x, y) for points in series.values() for x, y in points if y is not None]
    x_low, x_high, x_ticks = scale([x for x, _ in known], 8, tight=True)
    y_low, y_high, y_ticks = scale([y for _, y in known], 5)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for name, points in series.items():
        parts = [[at(*point) for point in part] for part in unbroken(points)]
        path = " ".join("M" + " L".join(f"{x:g},{y:g}" for x, y in part) for part in parts if len(part) > 1)
        last = next(y for _, y in reversed(points) if y is not None)
        lines.append(
            Line(name, styles.get(name, 0), path, [part[0] for part in parts if len(part) == 1], f"{last:.4g}")
        )
    label = f"{title} by {x_label}: " + "; ".join(f"{line.name}, at the end {line.last}" for line in lines)
    return Chart(
        title, label, x_label, lines,
        [(at(x, y_low)[0], f"{x:g}") for x in x_ticks], [(at(x_low, y)[1], f"{y:.6g}") for y in y_ticks],
    )  # fmt: skip


def scale(values: Sequence[float], most: int, tight: bool = False) -> tuple[float, float, list[float]]:
    """The axis' ends and its ticks; `tight`: it ends where the values do."""
    low, high = min(values), max(values)
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # all the same
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    ticks = [float(tick) for tick in MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    if tight:
        return low, high, [tick for tick in ticks if low <= tick <= high]
    return ticks[0], ticks[-1], ticks


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, Optional[float]]]:
    """At most about so many of the points: the lowest and the highest of each stretch, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(2 * len(points) / most)
    kept = []
    for start in range(0, len(points), stretch):
        part = range(start, min(start + stretch, len(points)))
        values = sorted((value, i) for i in part if (value := points[i][1]) is not None)
        kept += sorted({values[0][1], values[-1][1]}) if values else [start]
    return [points[i] for i in kept]


def unbroken(points: Points) -> list[list[tuple[float, float]]]:
    """The stretches between gaps."""
    parts: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None:
            parts[-1].append((x, y))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]
