"""A confusion matrix as a picture that can be read at 3, 10 and 1000 classes."""

import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from utils.errors import printable

MOST_CLASSES = 20  # with a row each
OTHERS = "other"


def confusion_picture(matrix: np.ndarray, names: list[str], title: str) -> np.ndarray:
    """A confusion matrix as colours and numbers, RGB (height, width, 3), uint8.

    A cell's colour is its share of the images of its row. With more than `MOST_CLASSES` classes it is of the most confused
    ones, in label order, with a last column for the predictions of all others.

    Args:
        matrix: images by class (rows) and predicted class, (classes, classes).
        names: of the classes.
    """
    shown = most_confused(matrix)
    whole = len(shown) == len(matrix)
    cells = matrix[np.ix_(shown, shown)]
    columns = [_short(names[label]) for label in shown]
    if not whole:
        others = matrix[shown].sum(axis=1) - cells.sum(axis=1)
        cells = np.hstack([cells, others[:, None]])
        columns.append(OTHERS)
        title += f"\nThe {len(shown)} most confused of {len(matrix)} classes"
    images = matrix[shown].sum(axis=1)
    shares = cells / np.maximum(images, 1)[:, None]

    side = max(4.5, 0.42 * len(columns) + 2.4)
    figure = Figure(figsize=(side + 0.8, side), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # so that a share of a few percent can be seen
    axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 2 else 0, fontsize=8)
    axes.set_yticks(range(len(shown)), [_short(names[label]) for label in shown], fontsize=8)
    axes.set(xlabel="predicted", ylabel="class")
    for row, column in np.argwhere(cells):
        colour = "white" if shares[row, column] > 0.35 else "black"
        axes.text(column, row, str(cells[row, column]), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(
        image,
        shrink=0.8,
        label="share of the class's images",
        format=lambda share, _: f"{100 * share:.0f} %",
        ticks=[0, 0.05, 0.2, 0.5, 1],
    )
    figure.suptitle(
        "\n".join(line for part in title.split("\n") for line in textwrap.wrap(_literal(part), int(side * 15))),
        fontsize=8,
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def most_confused(matrix: np.ndarray) -> list[int]:
    """At most `MOST_CLASSES` labels, in label order: those of the most frequent mistakes, each with the class it is taken for."""
    if len(matrix) <= MOST_CLASSES:
        return list(range(len(matrix)))
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    labels: dict[int, None] = {}
    for place in np.argsort(-wrong, axis=None, kind="stable"):
        labels.update(dict.fromkeys(divmod(int(place), len(matrix))))
        if len(labels) >= MOST_CLASSES:
            break
    return sorted(list(labels)[:MOST_CLASSES])


def _short(name: str) -> str:
    return textwrap.shorten(_literal(name), 24, placeholder="...") or name[:24]


def _literal(text: str) -> str:
    """As matplotlib draws it: no formula between two dollars."""
    return printable(text).replace("$", r"\$")
