"""Figures of the same images from other batches: docs/evaluation.md says which are equal, and which to a tolerance."""

import csv
import io
import json
from typing import Any

import numpy as np

# one of the last digit that is written; all others are equal
TOLERANCES = {"loss": 2e-6, "ece": 2e-3, "confidence": 2e-3}
PROBABILITY = 1.01e-4  # likewise
BINS = 15


def same_figures(found: Any, expected: Any) -> bool:
    """Whether two JSON values are equal but for the last digit of what `TOLERANCES` names."""
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(
            abs(found[key] - value) <= TOLERANCES[key] * 1.01
            if key in TOLERANCES and None not in (found[key], value)
            else same_figures(found[key], value)
            for key, value in expected.items()
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same_figures, found, expected))
    return found == expected


def same_calibration(found: dict, expected: dict, confidences: np.ndarray) -> bool:
    """As `same_figures`; an image whose confidence is at a bin's edge may lie on its other side.

    Args:
        confidences: (N,) of these images and maybe others, as they are written.
    """
    edges = np.arange(1, BINS) / BINS
    at_edge = (np.abs(confidences[:, None] - edges) <= PROBABILITY).sum(axis=0)
    movable = [int(before + after) for before, after in zip([0, *at_edge], [*at_edge, 0])]  # images, by bin
    rows = zip(found["reliability"], expected["reliability"], movable, strict=True)
    same = all(abs(a["images"] - b["images"]) <= images if images else same_figures(a, b) for a, b, images in rows)
    return (
        same
        and abs(found["ece"] - expected["ece"]) <= TOLERANCES["ece"] * 1.01 + 200 * at_edge.sum() / found["num_images"]
    )


def same_set(found: bytes, expected: bytes, predictions: bytes) -> bool:
    """Of a set's JSON files, with its file of predictions."""
    a, b = json.loads(found), json.loads(expected)
    confidences = np.array([float(row["probability1"]) for row in rows_of(predictions)])
    kept = [{key: value for key, value in figures.items() if key not in ("ece", "reliability")} for figures in (a, b)]
    return same_figures(*kept) and same_calibration(a, b, confidences)


def same_predictions(found: bytes, expected: bytes) -> bool:
    """The same images, labels and classes; classes may change places where their probabilities are written alike."""
    a, b = rows_of(found), rows_of(expected)
    if [(row["image"], row["right"]) for row in a] != [(row["image"], row["right"]) for row in b]:
        return False
    numbers = [key.removeprefix("probability") for key in a[0] if key.startswith("probability")]
    for one, other in zip(a, b):
        for n in numbers:
            if abs(float(one[f"probability{n}"]) - float(other[f"probability{n}"])) > PROBABILITY:
                return False
            if one[f"top{n}"] != other[f"top{n}"]:
                alike = [
                    m
                    for m in numbers
                    if abs(float(other[f"probability{m}"]) - float(one[f"probability{n}"])) <= PROBABILITY
                ]
                if len(alike) < 2:
                    return False
    return True


def rows_of(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode())))
