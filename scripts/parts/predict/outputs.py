"""What is made of predictions: a table, CSV, JSON, a contact sheet."""

import json
import os
from array import array
from typing import Any, BinaryIO, Iterator, Mapping, Sequence

from engine.evaluation.sets.tables import write_rows
from engine.inference.predictor import Prediction, Predictor
from utils.errors import printable
from utils.pictures import encode_png, fitted, grid, titled

COLUMNS = ["path", "rank", "label", "class", "name", "probability"]
PATH_WIDTH = 60  # most characters of the table's first column; a longer path moves its own row
SHEET_IMAGES, SHEET_COLUMNS, SIDE = 100, 8, 144  # px of an image in the sheet


class Results:
    """What is kept of the images: their paths, 8 bytes for each class, and the pixels that the sheet shows.

    Args:
        predictor: of them.
        paths: of all files.
        with_sheet: whether there will be one.
    """

    def __init__(self, predictor: Predictor, paths: Sequence[str], with_sheet: bool):
        trained = predictor.trained
        self.model = f"{trained.cfg.MODEL.NAME}, {trained.weights} weights of {printable(trained.path)}"
        self.classes, self.names = trained.classes, trained.names
        # A name alone may be that of two classes, as ImageNet's "crane" and "maillot".
        self.said = [
            printable(name if name == own else f"{name} ({own})") for own, name in zip(self.classes, self.names)
        ]
        self.path_width = min(PATH_WIDTH, max(len("image"), *(len(printable(path)) for path in paths)))
        self.class_width = max(len("class"), *map(len, self.said))
        self.with_sheet = with_sheet
        self.paths: list[str] = []
        self.labels, self.probabilities = array("i"), array("f")
        self.tiles: list[tuple[Any, str]] = []

    def add(self, prediction: Prediction) -> None:
        self.paths.append(prediction.path)
        self.labels.extend(prediction.labels)
        self.probabilities.extend(prediction.probabilities)
        if self.with_sheet and len(self.tiles) < SHEET_IMAGES:
            pixels, scale = fitted(prediction.pixels, SIDE)
            if scale == 1:  # then `grid` makes it larger, pixel by pixel
                pixels = pixels.copy()
            self.tiles.append((pixels, f"{self.caption(prediction)}\n{printable(os.path.basename(prediction.path))}"))

    def caption(self, prediction: Prediction) -> str:
        """Of an image in the sheet."""
        return f"{100 * prediction.probabilities[0]:.0f} %: {self.names[prediction.labels[0]]}"

    def rows(self, prediction: Prediction) -> str:
        """An image's rows of the table, below the table's head if it is the first one."""
        lines = (
            [f"{'image':<{self.path_width}}  rank  {'class':<{self.class_width}}  probability"]
            if len(self.paths) == 1
            else []
        )
        path = printable(prediction.path)
        for rank, (label, probability) in enumerate(zip(prediction.labels, prediction.probabilities), 1):
            lines.append(
                f"{path:<{self.path_width}}  {rank:>4}  {self.said[label]:<{self.class_width}}  {100 * probability:>9.2f} %"
            )
            path = ""
        return "\n".join(lines)

    def _each(self) -> Iterator[tuple[str, list[tuple]]]:
        """Of each image its path, and of each of its classes what `COLUMNS` say, from the rank on."""
        topk = len(self.labels) // max(1, len(self.paths))
        for i, path in enumerate(self.paths):
            found = zip(self.labels[i * topk : (i + 1) * topk], self.probabilities[i * topk : (i + 1) * topk])
            yield (
                path,
                [
                    (rank, label, self.classes[label], self.names[label], round(probability, 6))
                    for rank, (label, probability) in enumerate(found, 1)
                ],
            )

    def write_csv(self, file: BinaryIO) -> str:
        write_rows(file, COLUMNS, ((path, *row[:-1], f"{row[-1]:.6f}") for path, rows in self._each() for row in rows))
        return f"{len(self.paths)} images"

    def write_json(self, facts: Mapping[str, Any], unreadable: Sequence[str], file: BinaryIO) -> str:
        """An object with the facts, `images` and `unreadable`; a line for each image, as there may be millions."""
        file.write(json.dumps(facts)[:-1].encode() + b', "images": [')
        for number, (path, rows) in enumerate(self._each()):
            image = {"path": path, "top": [dict(zip(COLUMNS[1:], row)) for row in rows]}
            file.write((",\n" if number else "\n").encode() + json.dumps(image).encode())
        file.write(b'\n], "unreadable": ' + json.dumps(unreadable).encode() + b"}\n")
        return f"{len(self.paths)} images"

    def write_sheet(self, file: BinaryIO) -> str:
        shown = (
            f"{len(self.tiles)} images"
            if len(self.tiles) == len(self.paths)
            else f"the first {len(self.tiles)} of {len(self.paths)} images"
        )
        pictures, captions = zip(*self.tiles)
        file.write(
            encode_png(
                titled(grid(pictures, captions, SIDE, min(SHEET_COLUMNS, len(pictures))), f"{self.model}: {shown}")
            )
        )
        return shown
