"""Figures of segmentation: counts of pixels, divided once at the end, so that any split of the images gives the same."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.masks import IGNORED
from utils.errors import DataError
from utils.metrics import NUM_IMAGES, Metric
from utils.processes.collectives import sum_over_ranks

MIOU = Metric("miou", "mIoU, %")
MACC = Metric("macc", "mAcc, %")
AACC = Metric("aacc", "aAcc, %")
FIGURES = (MIOU, MACC, AACC, NUM_IMAGES)


@dataclass(frozen=True)
class ClassFigures:
    """Of each class, from 0 to 1; nan where nothing says it."""

    iou: np.ndarray  # (C,); nan: no pixel is of the class or was taken for it
    accuracy: np.ndarray  # (C,); nan: no pixel is of the class
    share: np.ndarray  # (C,), of all pixels


class ConfusionMatrix:
    """Pixels by class (rows) and predicted class (columns): `counts`, (num_classes, num_classes), int64."""

    def __init__(self, num_classes: int, device: torch.device):
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.images = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, predicted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Adds an image's predicted classes and labels, both (H, W); returns what was added."""
        counted = labels != IGNORED
        pairs = labels[counted].long() * self.num_classes + predicted[counted]
        counts = torch.bincount(pairs, minlength=self.num_classes**2).view_as(self.counts)
        self.counts += counts
        self.images += 1
        return counts

    def gather(self) -> np.ndarray:
        """The counts over all processes, which all call this."""
        return sum_over_ranks(self.counts).cpu().numpy()

    def compute(self) -> dict[str, Any]:
        """Figures in percent over all processes, which all call this.

        mIoU is the mean over the classes of which there is a pixel, or that one was taken for; mAcc over those of which there
        is a pixel; aAcc the share of pixels whose class is right.

        Raises:
            DataError: no pixel has a class.
        """
        counts = self.gather()
        if not counts.sum():
            raise DataError(
                "DATA.VAL_SPLIT: no pixel of the masks has a class, so that there is nothing to measure; check SEG.IGNORE and "
                "SEG.REDUCE_ZERO_LABEL"
            )
        each = class_figures(counts)
        return {
            "miou": 100 * float(np.nanmean(each.iou)),
            "macc": 100 * float(np.nanmean(each.accuracy)),
            "aacc": 100 * float(np.trace(counts) / counts.sum()),
            "num_images": int(sum_over_ranks(self.images)),
        }


def class_figures(counts: np.ndarray) -> ClassFigures:
    """The figures of each class from a confusion matrix (C, C) of whole numbers."""
    right, truth, taken = np.diag(counts), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore"):
        return ClassFigures(right / (truth + taken - right), right / truth, truth / counts.sum())
