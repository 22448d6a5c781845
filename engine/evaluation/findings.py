"""What a run's report shows of its last evaluation, as sections that JSON can hold."""

import base64
import math
from collections import Counter
from typing import Any, Optional, Sequence

import numpy as np

from utils.class_counts import ClassScores
from utils.pictures import encode_jpeg

from .mistakes import Errors
from .sets.tables import meanings

CONFUSIONS = 20  # pairs of classes that are shown
POOREST = 100  # classes whose scores are


def worst_mistakes(errors: Errors, classes: Sequence[str]) -> dict[str, Any]:
    """A section of the images with the largest loss."""
    names = _names(classes)
    pictures = [
        {
            "size": [mistake.pixels.shape[1], mistake.pixels.shape[0]],
            "jpeg": base64.b64encode(encode_jpeg(mistake.pixels)).decode(),
            "key": mistake.key,
            "title": f"{_short(names[mistake.target])} \u2192 {_short(names[mistake.predicted])}",
            "notes": [
                f"predicted with {mistake.probability:.1%}",
                f"loss {mistake.loss:.2f}" if math.isfinite(mistake.loss) else "loss not finite",
            ],
        }
        for mistake in errors.worst
    ]
    text = "The validation images with the largest loss among those that were taken for another class: true class \u2192 prediction."
    return {"title": "Worst mistakes", "text": text, "pictures": pictures}


def frequent_confusions(errors: Errors, classes: Sequence[str]) -> dict[str, Any]:
    """A section of the pairs of classes that were confused most often."""
    names = _names(classes)
    images: Counter = Counter()
    for (target, _), count in errors.pairs.items():
        images[target] += count
    wrong = [(-count, target, predicted) for (target, predicted), count in errors.pairs.items() if target != predicted]
    rows = [
        [names[target], names[predicted], str(-count), f"{-count / images[target]:.1%}"]
        for count, target, predicted in sorted(wrong)[:CONFUSIONS]
    ]
    text = f"{-sum(count for count, _, _ in wrong)} of {sum(images.values())} images were taken for another class, {len(wrong)} pairs of classes in all."
    return {
        "title": "Most frequent confusions",
        "text": text,
        "columns": ["true class", "predicted", "images", "of the class"],
        "rows": rows,
    }


def poorest_classes(scores: ClassScores, classes: Sequence[str]) -> dict[str, Any]:
    """A section of the classes' precision, recall and F1."""
    names, order = _names(classes), np.argsort(scores.f1, kind="stable")  # nan last
    rows = []
    for label in order[:POOREST].tolist():
        images, predicted, *percents = scores.row(label)
        rows.append([names[label], str(images), str(predicted), *map(shown, percents)])
    return classes_section(len(classes), "F1", "F1", ["precision, %", "recall, %", "F1, %"], rows)


def classes_section(
    num_classes: int, figure: str, order: str, columns: Sequence[str], rows: list[list[str]]
) -> dict[str, Any]:
    """A section of the classes whose `figure` is lowest.

    Args:
        num_classes: of which there are as many rows as are shown.
        order: by what the rows rise, and what is to be said of it.
        columns: those after the class' name, its images, and how many were taken for it.
    """
    which = (
        "All classes" if num_classes <= POOREST else f"The {POOREST} of {num_classes} classes with the lowest {figure}"
    )
    text = f"{which}, by rising {order}; \u2013: no image has the class, or none was taken for it."
    return {"title": "Classes", "text": text, "columns": ["class", "images", "taken for it", *columns], "rows": rows}


def shown(percent: Optional[float]) -> str:
    return "\u2013" if percent is None else f"{percent:.2f}"


def _names(classes: Sequence[str]) -> list[str]:
    return [f"{name} {told.split(', ')[0]}" if told else name for name, told in zip(classes, meanings(classes))]


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "\u2026"
