"""Precision, recall and F1 of classes, from whole numbers that any split of the images gives alike."""

import functools
from dataclasses import dataclass
from typing import Any, Optional, Sequence

import numpy as np
import torch

from .processes.collectives import min_over_ranks, sum_over_ranks

COLUMNS = ("images", "predicted", "precision", "recall", "f1")


@dataclass(frozen=True)
class ClassScores:
    """Of each class (C,)."""

    images: np.ndarray  # int64, of the class
    predicted: np.ndarray  # int64, that were taken for it
    right: np.ndarray  # int64, that are both

    @functools.cached_property
    def precision(self) -> np.ndarray:
        """(C,) from 0 to 1; nan: nothing was taken for the class."""
        return _share(self.right, self.predicted)

    @functools.cached_property
    def recall(self) -> np.ndarray:
        """(C,) from 0 to 1; nan: the class has no images."""
        return _share(self.right, self.images)

    @functools.cached_property
    def f1(self) -> np.ndarray:
        """(C,) from 0 to 1; nan: the class has no images, and nothing was taken for it."""
        return _share(2 * self.right, self.images + self.predicted)

    def macro(self) -> dict[str, float]:
        """Means over classes in percent, as scikit-learn has them: the balanced accuracy over those with images; precision,
        recall and F1 over those with images or predictions, in which what is not defined counts as 0.
        """
        there = ~np.isnan(self.f1)
        precision, recall, f1 = (
            np.nan_to_num(values[there]).mean() for values in (self.precision, self.recall, self.f1)
        )
        return {
            "balanced_accuracy": 100 * float(np.nanmean(self.recall)),
            "precision_macro": 100 * float(precision),
            "recall_macro": 100 * float(recall),
            "f1_macro": 100 * float(f1),
        }

    def row(self, label: int) -> list[Any]:
        """`COLUMNS` of a class: whole numbers, and percent or None where it is not defined."""
        percents = [percent_or_none(values[label]) for values in (self.precision, self.recall, self.f1)]
        return [int(self.images[label]), int(self.predicted[label]), *percents]

    def table(self, classes: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
        """Columns, and a row for each class, in label order."""
        return ["class", *COLUMNS], [[name, *self.row(label)] for label, name in enumerate(classes)]


def percent_or_none(share: float) -> Optional[float]:
    """Of a share from 0 to 1; None: it is not defined (nan)."""
    return None if np.isnan(share) else 100 * float(share)


def _share(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return parts / wholes


class ClassCounts:
    """Counts images by class: those of it, those taken for it, and those that are both."""

    def __init__(self, device: torch.device):
        self.device = device
        self.counts: Optional[torch.Tensor] = None  # int64 (3, C); the first batch says how many classes there are

    def add(self, predicted: torch.Tensor, targets: torch.Tensor, num_classes: int) -> None:
        """Adds a batch: labels (B,) of classes."""
        if self.counts is None:
            self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=self.device)
        right = (predicted == targets).long()
        for row, labels, each in zip(self.counts, (targets, predicted, targets), (None, None, right)):
            row.index_add_(0, labels, torch.ones_like(labels) if each is None else each)

    def gather(self) -> ClassScores:
        """The scores over all processes, which all call this; one of them may have had no images."""
        here = 0 if self.counts is None else self.counts.shape[1]
        num_classes = -int(min_over_ranks(torch.tensor(-here, device=self.device)))
        counts = torch.zeros(3, num_classes, dtype=torch.int64, device=self.device)
        if self.counts is not None:
            counts += self.counts
        return ClassScores(*sum_over_ranks(counts).cpu().numpy())
