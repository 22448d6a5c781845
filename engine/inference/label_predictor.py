"""What a trained model of TASK multilabel takes image files for."""

from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np
import torch

from ..evaluation.label_evaluators import thresholds_from
from ..evaluation.views import mean_of_sigmoids
from .predictor import Prediction, Predictor
from .trained import Trained


@dataclass(frozen=True)
class LabelPrediction(Prediction):
    """Of one file, its labels, the likeliest first; there may be none."""

    scores: np.ndarray  # (C,) float64, the probability of each class


class LabelPredictor(Predictor):
    """Gives a file each class whose probability reaches the class' threshold.

    Args: those of `Predictor`.

    Raises:
        CheckpointError: the checkpoint's thresholds are of other classes.
    """

    mean = staticmethod(mean_of_sigmoids)

    def __init__(self, trained: Trained, *args: Any, **more: Any):
        super().__init__(trained, *args, **more)
        fixed = trained.cfg.MULTILABEL.THRESHOLD
        self.thresholds, self.note = thresholds_from(
            fixed, trained.chosen, len(trained.classes)
        )  # (C,), and a line of them

    def describe(
        self, logits: torch.Tensor, topk: int, paths: Sequence[str], frames: Sequence[int], pixels: Sequence[np.ndarray]
    ) -> list[Prediction]:
        scores = logits.double().sigmoid().cpu().numpy()
        predictions: list[Prediction] = []
        for path, row, count, picture in zip(paths, scores, frames, pixels):
            labels = [
                label for label in np.argsort(-row, kind="stable").tolist() if row[label] >= self.thresholds[label]
            ]
            predictions.append(LabelPrediction(path, labels, row[labels].tolist(), count, picture, row))
        return predictions
