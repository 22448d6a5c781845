"""Evaluators of classification: what a model says of images goes into metrics."""

from typing import Any, Callable, Sequence

import torch

from data.batches import Examples
from utils.metrics import ClassificationMetrics
from utils.processes.peers import Peers

from .findings import frequent_confusions, poorest_classes, worst_mistakes
from .mistakes import Mistakes
from .views import predict_views


class ClassEvaluator:
    """Adds the predictions of a model to metrics.

    Args:
        metrics: any that take logits.
        flip: whether the mirror image of each view is one more.
    """

    def __init__(self, metrics: ClassificationMetrics, flip: bool):
        self.metrics = metrics
        self.flip = flip

    def step(self, model: Callable[[Any], Any], batch: Examples) -> None:
        views = batch.tensor.chunk(len(batch.images) // len(batch.targets))
        logits = predict_views(model, views, self.flip)
        self.metrics.update(logits, batch.targets, batch.keys, views[-1])  # of five crops the centre

    def compute(self) -> dict[str, float]:
        return self.metrics.compute()

    def class_table(self, classes: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
        return self.metrics.class_scores.table(classes)


class ClosingClassEvaluator(ClassEvaluator):
    """The same figures; and the images that the model was most wrong about, the classes that it took for others, and the
    scores of each class.
    """

    def __init__(self, device: torch.device, mean: Sequence[float], std: Sequence[float], flip: bool):
        self.mistakes = Mistakes(device, mean, std)
        super().__init__(self.mistakes, flip)

    def gather(self, peers: Peers) -> None:
        self.errors = self.mistakes.gather(peers)

    def sections(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        scores = poorest_classes(self.mistakes.class_scores, classes)
        return [worst_mistakes(self.errors, classes), frequent_confusions(self.errors, classes), scores]
