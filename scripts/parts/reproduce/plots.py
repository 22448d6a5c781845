"""What the figures have in common."""

import io
import re
from pathlib import Path
from typing import Sequence, Union

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from utils.errors import printable
from utils.files import atomic_write

# Where a label may stand beside its point, in points of 1/72 inch, the nearest places first.
NEAR = [(6, 4), (-6, 4), (0, 8), (6, -9), (-6, -9), (0, -13), (9, -2), (-9, -2)]
PLACES = [(x * far, y * far) for far in (1, 2, 3.5, 5) for x, y in NEAR]


def save_png(figure: Figure, path: Path) -> None:
    """Writes the figure and closes it.

    Raises:
        OutputError: it cannot be written; what was there is as it was.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def point_name(model: str, img_size: Union[int, str]) -> str:
    """A model as a label has it: short, with its size where that is not 224 px."""
    name = re.sub(r"\..*|_patch\d+|_window\d+|_224(?=\.|$)", "", model)
    return name + (f" ({img_size} px)" if str(img_size) != "224" else "")


def literal(text: object) -> str:
    """A name as matplotlib draws it: no formula between two dollars."""
    return printable(text).replace("$", r"\$")


def label_points(axes: Axes, labels: Sequence[tuple[float, float, str]], size: float = 7) -> None:
    """Writes (x, y, text) labels beside their points, so that none lies over another or over a point, where there is room.

    The limits of the axes must not change after this.
    """
    figure = axes.get_figure()
    figure.draw_without_rendering()
    taken = []
    for x, y, _ in labels:
        px, py = axes.transData.transform((x, y))
        taken.append(Bbox.from_extents(px - 5, py - 5, px + 5, py + 5))
    for x, y, text in sorted(labels, key=lambda label: -label[1]):
        note = axes.annotate(text, (x, y), xytext=(0, 0), fontsize=size, textcoords="offset points")
        places = []
        for dx, dy in PLACES:
            note.set_position((dx, dy))
            note.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
            box = note.get_window_extent()
            outside = not (axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1))
            places.append((outside + sum(box.overlaps(other) for other in taken), len(places), box, (dx, dy)))
            if not places[-1][0]:
                break
        _, _, box, (dx, dy) = min(places, key=lambda place: place[:2])
        note.set_position((dx, dy))
        note.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
        if max(abs(dx), abs(dy)) > 10:
            axes.annotate(
                "",
                (x, y),
                xytext=(dx, dy),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "gray"},
            )
        taken.append(box)
