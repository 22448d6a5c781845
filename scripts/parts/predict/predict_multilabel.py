"""All labels of images, by a model of TASK multilabel: each class whose probability reaches the class' threshold."""

import argparse
import json
from array import array
from typing import Any, BinaryIO, Callable, Iterator, Mapping, Sequence

import numpy as np

from engine.evaluation.sets.tables import write_rows
from engine.inference.label_predictor import LabelPrediction, LabelPredictor
from engine.inference.predictor import Prediction
from utils.errors import printable

from .outputs import COLUMNS, Results
from .places import OUTPUTS, STANDARD
from .predicting import predict_all, write_outputs

NONE = "no label"


def predict(args: argparse.Namespace, paths: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Prints the labels of each image, and writes --csv, --json and --sheet.

    Args:
        say: takes a line of what else is to be known.

    Returns:
        A line for each file that has no image.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        OutputError: a file cannot be written.
    """
    outputs = {kind: path for kind in OUTPUTS if (path := getattr(args, kind)) is not None}
    with_table = STANDARD not in outputs.values()
    facts, results, failures = predict_all(args, paths, "sheet" in outputs, with_table, (LabelPredictor, LabelResults))
    assert isinstance(results, LabelResults)
    say(results.note)
    write_outputs(outputs, {**facts, "thresholds": results.thresholds}, results, failures)
    return failures


class LabelResults(Results):
    """As `Results`; images have as many labels as they have, and 4 bytes more for each class are kept of them.

    Args:
        predictor: of labels.
    """

    def __init__(self, predictor: LabelPredictor, paths: Sequence[str], with_sheet: bool):
        super().__init__(predictor, paths, with_sheet)
        self.thresholds, self.note = predictor.thresholds.tolist(), predictor.note
        self.ends, self.scores = array("q"), array("f")  # where each image's labels end, its probability of each class

    def add(self, prediction: Prediction) -> None:
        super().add(prediction)
        assert isinstance(prediction, LabelPrediction)
        self.ends.append(len(self.labels))
        self.scores.extend(prediction.scores.astype(np.float32))

    def caption(self, prediction: Prediction) -> str:
        return ", ".join(self.names[label] for label in prediction.labels) or NONE

    def rows(self, prediction: Prediction) -> str:
        if prediction.labels:
            return super().rows(prediction)
        lines = super().rows(prediction).split("\n")  # the head, if it is the first image
        return "\n".join([*filter(None, lines), f"{printable(prediction.path):<{self.path_width}}        {NONE}"])

    def _each(self) -> Iterator[tuple[str, list[tuple]]]:
        start = 0
        for path, end in zip(self.paths, self.ends):
            labels = zip(self.labels[start:end], self.probabilities[start:end])
            yield (
                path,
                [
                    (rank, label, self.classes[label], self.names[label], round(probability, 6))
                    for rank, (label, probability) in enumerate(labels, 1)
                ],
            )
            start = end

    def write_csv(self, file: BinaryIO) -> str:
        """As without several labels; an image without labels has a row of its path alone."""
        write_rows(file, COLUMNS, self._csv_rows())
        return f"{len(self.paths)} images"

    def _csv_rows(self) -> Iterator[tuple]:
        for path, rows in self._each():
            if not rows:
                yield (path, *[""] * (len(COLUMNS) - 1))
            for *row, probability in rows:
                yield (path, *row, f"{probability:.6f}")

    def write_json(self, facts: Mapping[str, Any], unreadable: Sequence[str], file: BinaryIO) -> str:
        """An object with the facts, the classes' names in label order, `images` and `unreadable`; a line for each image."""
        count = len(self.classes)
        file.write(json.dumps({**facts, "names": self.classes})[:-1].encode() + b', "images": [')
        for number, (path, rows) in enumerate(self._each()):
            scores = [round(score, 6) for score in self.scores[number * count : (number + 1) * count]]
            image = {"path": path, "labels": [dict(zip(COLUMNS[1:], row)) for row in rows], "scores": scores}
            file.write((",\n" if number else "\n").encode() + json.dumps(image).encode())
        file.write(b'\n], "unreadable": ' + json.dumps(unreadable).encode() + b"}\n")
        return f"{len(self.paths)} images"
