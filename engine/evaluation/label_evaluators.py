"""Evaluators of images with several labels: the scores of all images come together, as average precision needs them."""

import math
from typing import Any, Callable, Mapping, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from data.batches import Examples
from utils.class_counts import percent_or_none
from utils.errors import CheckpointError, DataError
from utils.metrics import LOSS, NUM_IMAGES
from utils.processes.collectives import gather_rows
from utils.processes.peers import Peers

from .findings import POOREST, classes_section, shown
from .label_figures import EVEN, label_figures
from .views import mean_of_sigmoids, predict_views

THRESHOLDS = "thresholds"  # in what a checkpoint keeps of an evaluation


def thresholds_from(fixed: float, chosen: Mapping[str, Any], num_classes: int) -> tuple[np.ndarray, str]:
    """The score of each class from which on an image has it (C,), and a line of where they come from.

    Args:
        fixed: the config's MULTILABEL.THRESHOLD; 0: those that were chosen.
        chosen: what a checkpoint keeps of the evaluation of its weights; may be empty.

    Raises:
        CheckpointError: it holds something else.
    """
    if fixed:
        return np.full(num_classes, fixed), f"thresholds: MULTILABEL.THRESHOLD {fixed} of all classes"
    values = chosen.get(THRESHOLDS)
    if values is None:
        return np.full(num_classes, EVEN), f"thresholds: {EVEN} of all classes, as the checkpoint has none"
    whole = isinstance(values, list) and len(values) == num_classes
    if not whole or not all(type(value) is float and 0 <= value <= 1 for value in values):
        raise CheckpointError(
            f"the checkpoint's thresholds are not those of {num_classes} classes; set MULTILABEL.THRESHOLD, or use another one"
        )
    few, most = min(values), max(values)
    line = f"thresholds: the checkpoint's, {few:.3f} to {most:.3f}, which gave its validation images the largest F1 of each class"
    return np.array(values), line


class LabelEvaluator:
    """mAP and F1 of all processes' images. Each process holds the scores and targets of all N of them for a moment, about
    40 N C bytes.

    Args:
        num_classes: C.
        device: of the logits.
        flip: whether the mirror image of each view is one more.
        threshold: of all classes; 0: one per class, with the largest F1 on these images, or those that `use` is given.
    """

    def __init__(self, num_classes: int, device: torch.device, flip: bool, threshold: float = 0.0):
        self.num_classes, self.flip, self.threshold = num_classes, flip, threshold
        self.thresholds: Optional[np.ndarray] = np.full(num_classes, threshold) if threshold else None
        self.logits = [torch.empty(0, num_classes, device=device)]
        self.targets = [torch.empty(0, num_classes, dtype=torch.uint8, device=device)]

    def step(self, model: Callable[[Any], Any], batch: Examples) -> None:
        views = batch.tensor.chunk(len(batch.images) // len(batch.targets))
        self.logits.append(predict_views(model, views, self.flip, mean_of_sigmoids).float())
        self.targets.append(batch.targets)

    def compute(self) -> dict[str, Any]:
        """`label_figures.FIGURES`, of scores in float64.

        Raises:
            DataError: no image has a label.
        """
        logits, targets = (gather_rows(torch.cat(parts)) for parts in (self.logits, self.targets))
        if not targets.any():
            raise DataError("DATA.VAL_SPLIT: no validation image has a label, so that there is nothing to measure")
        loss = F.binary_cross_entropy_with_logits(logits.double(), targets.double())
        scores = logits.double().sigmoid().cpu().numpy()
        self.figures = label_figures(scores, targets.cpu().numpy(), self.thresholds)
        # rounded, as the order in which processes bring their images moves the last digits of the sum
        return {**self.figures.summary(), LOSS.key: round(loss.item(), 6), NUM_IMAGES.key: len(targets)}

    def class_table(self, classes: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
        figures = self.figures
        columns = ["class", "images", "predicted", "average_precision", "precision", "recall", "f1", "threshold"]
        rows = []
        for label, name in enumerate(classes):
            images, predicted, *percents = figures.scores.row(label)
            average_precision = percent_or_none(figures.average_precision[label])
            rows.append([name, images, predicted, average_precision, *percents, float(figures.thresholds[label])])
        return columns, rows

    def chosen(self) -> dict[str, Any]:
        """The thresholds that these images gave; nothing where the config fixes them."""
        return {} if self.threshold else {THRESHOLDS: self.figures.thresholds.tolist()}

    def use(self, chosen: Mapping[str, Any]) -> str:
        """Takes the thresholds of a checkpoint, which saw other images, instead of choosing; returns a line of them."""
        self.thresholds, line = thresholds_from(self.threshold, chosen, self.num_classes)
        return line


class ClosingLabelEvaluator(LabelEvaluator):
    """The same figures; and those of each class."""

    def gather(self, peers: Peers) -> None:
        """Nothing: all processes have all figures."""

    def sections(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        table = self.class_table(classes)[1]
        table.sort(key=lambda row: math.inf if row[3] is None else row[3])
        chosen = "one for all" if self.threshold else "of each class that with the largest F1 on these images"
        order = f"average precision (AP); precision, recall and F1 are at the threshold, {chosen}"
        rows = [
            [name, str(images), str(taken), *map(shown, percents), f"{threshold:.3f}"]
            for name, images, taken, *percents, threshold in table[:POOREST]
        ]
        columns = ["AP, %", "precision, %", "recall, %", "F1, %", "threshold"]
        return [classes_section(len(classes), "AP", order, columns, rows)]
