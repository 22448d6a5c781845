"""Figures of images with several labels, from the scores of all of them: each class is a question of yes or no.

All come from counts of images that are ordered by score, those of equal scores together: so the order in which processes
bring them does not change a bit.
"""

from dataclasses import dataclass
from typing import Optional

import numpy as np

from utils.class_counts import ClassScores
from utils.metrics import LOSS, NUM_IMAGES, Metric

MAP = Metric("map", "mAP, %")
F1_MACRO = Metric("f1_macro", "F1 (macro), %")
F1_MICRO = Metric("f1_micro", "F1 (micro), %")
NUM_CLASSES = Metric("num_classes", "classes with images", digits=0)
FIGURES = (MAP, F1_MACRO, F1_MICRO, LOSS, NUM_CLASSES, NUM_IMAGES)
EVEN = 0.5  # the threshold of a class whose own nobody has chosen


@dataclass(frozen=True)
class ClassRanking:
    """A class' images by falling score, at each place where the score changes: K of them."""

    scores: np.ndarray  # (K,), falling: of the last image that is taken there
    taken: np.ndarray  # (K,) images with at least that score
    right: np.ndarray  # (K,) of these, those that have the class
    positives: int  # images that have the class

    @property
    def average_precision(self) -> float:
        """The sum over K of the recall that a place adds times the precision there, from 0 to 1; nan without positives.

        As scikit-learn's `average_precision_score` defines it, without interpolation.
        """
        if not self.positives:
            return float("nan")
        added = np.diff(self.right, prepend=0)
        return float((added * (self.right / self.taken)).sum() / self.positives)

    def best_threshold(self) -> float:
        """The score from which on images have the class, for the largest F1: in the middle between two images.

        Of several the one that takes fewest images; `EVEN` without positives.
        """
        if not self.positives:
            return EVEN
        best = int(np.argmax(2 * self.right / (self.taken + self.positives)))
        score = float(self.scores[best])
        below = float(self.scores[best + 1]) if best + 1 < len(self.scores) else 0.0
        middle = (score + below) / 2
        return middle if middle > below else score


def rank(scores: np.ndarray, targets: np.ndarray) -> ClassRanking:
    """Of a class' scores (N,) and whether images have it (N,)."""
    order = np.argsort(-scores)
    scores, right = scores[order], np.cumsum(targets[order], dtype=np.int64)
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.empty(0, np.int64)
    return ClassRanking(scores[ends], ends + 1, right[ends], int(right[-1]) if len(right) else 0)


@dataclass(frozen=True)
class LabelFigures:
    """Of each class (C,)."""

    average_precision: np.ndarray  # from 0 to 1; nan: no image has the class
    thresholds: np.ndarray
    scores: ClassScores  # at the thresholds

    def summary(self) -> dict[str, float]:
        """In percent `MAP`, the mean over the classes that an image has, `F1_MACRO`, over those and the ones that an image was
        taken for, and `F1_MICRO`, of all decisions.
        """
        scores, there = self.scores, self.scores.images > 0
        decided = scores.predicted.sum() + scores.images.sum()
        return {
            MAP.key: 100 * float(self.average_precision[there].mean()),
            F1_MACRO.key: scores.macro()["f1_macro"],
            F1_MICRO.key: 100 * float(2 * scores.right.sum() / decided),
            NUM_CLASSES.key: int(there.sum()),
        }


def label_figures(scores: np.ndarray, targets: np.ndarray, thresholds: Optional[np.ndarray] = None) -> LabelFigures:
    """The figures of scores (N, C) from 0 to 1 and targets (N, C), 1 for each class that an image has.

    Args:
        thresholds: (C,); None: those with the largest F1 of each class, see `ClassRanking.best_threshold`.
    """
    rankings = [rank(scores[:, label], targets[:, label]) for label in range(scores.shape[1])]
    if thresholds is None:
        thresholds = np.array([ranking.best_threshold() for ranking in rankings])
    taken = scores >= thresholds
    positives = np.array([ranking.positives for ranking in rankings])
    return LabelFigures(
        average_precision=np.array([ranking.average_precision for ranking in rankings]),
        thresholds=thresholds,
        scores=ClassScores(images=positives, predicted=taken.sum(0), right=(taken & (targets > 0)).sum(0)),
    )
