"""Metrics as sums and counts, divided once at the end, so that any split of the images gives the same counts.

The last bits of a logit can depend on its batch: docs/evaluation.md says what that leaves of the other figures.
"""

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from .class_counts import ClassCounts
from .processes.collectives import sum_over_ranks


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation: what it is called, and which of two is better."""

    key: str  # in records and results
    title: str  # in reports, with its unit
    digits: int = 2  # behind the point, in reports
    higher_is_better: bool = True

    def rank(self, value: float) -> float:
        """The better a value, the higher."""
        return value if self.higher_is_better else -value


ACC1 = Metric("acc1", "top-1, %")
ACC5 = Metric("acc5", "top-5, %")
LOSS = Metric("loss", "loss", digits=4, higher_is_better=False)
NUM_IMAGES = Metric("num_images", "images", digits=0)
MACRO = (  # means over classes, named as scikit-learn's scorers
    Metric("balanced_accuracy", "balanced accuracy, %"),
    Metric("precision_macro", "precision (macro), %"),
    Metric("recall_macro", "recall (macro), %"),
    Metric("f1_macro", "F1 (macro), %"),
)
DETAILS = {metric.key for metric in MACRO}  # lines of a log leave them out, but for what best.pth is chosen by


def top_classes(logits: torch.Tensor) -> torch.Tensor:
    """The 5 (or all) likeliest classes of logits (B, classes), the likeliest first: (B, 5).

    Which of equal logits comes first depends on how many are asked for, so all ask here.
    """
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


class ClassificationMetrics:
    """Top-1 and top-5 accuracy in percent, mean cross-entropy, and means over classes, see `ClassScores`.

    With fewer than 5 classes, top-5 is top-`num_classes`, that is 100 %.
    """

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)  # correct@1, correct@5, loss, images
        self.class_counts = ClassCounts(device)

    def update(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        keys: Sequence[str] = (),
        images: Optional[torch.Tensor] = None,
    ) -> None:
        """Adds a batch: logits (B, classes), targets (B,) class indices.

        `keys` say which images they are, `images` (B, 3, H, W) are these, normalised: no sum needs them.
        """
        logits = logits.float()
        top = top_classes(logits)
        hits = top == targets[:, None]
        losses = F.cross_entropy(logits, targets, reduction="none").double()
        count = torch.tensor(len(targets), device=logits.device)
        self.sums += torch.stack([hits[:, 0].sum(), hits.sum(), losses.sum(), count]).to(self.sums.dtype)
        self.class_counts.add(top[:, 0], targets, logits.shape[1])

    def compute(self) -> dict[str, float]:
        """Metrics over all processes: acc1 and acc5 (percent), loss, num_images, and `MACRO` (percent).

        The loss is rounded to 1e-6: over different splits it is equal but for that last digit.
        """
        correct1, correct5, loss, num_images = sum_over_ranks(self.sums).tolist()
        self.class_scores = self.class_counts.gather()
        return {
            "acc1": 100 * correct1 / num_images,
            "acc5": 100 * correct5 / num_images,
            "loss": round(loss / num_images, 6),
            "num_images": int(num_images),
            **self.class_scores.macro(),
        }


def calibration(confidences: np.ndarray, correct: np.ndarray, bins: int = 15) -> dict[str, object]:
    """How far a model's confidence is from its accuracy: the expected calibration error of Guo et al. (ICML 2017).

    Args:
        confidences: (N,) probabilities of the predicted classes.
        correct: (N,) whether they are right.
        bins: of equal width, each with its upper edge.

    Returns:
        `ece`, percent, and `reliability`: of each bin its edges, images, mean confidence and accuracy (percent; None
        where there are no images).
    """
    place = np.clip(np.ceil(confidences.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    sums = [
        np.bincount(place, values, minlength=bins)
        for values in (confidences.astype(np.float64), correct.astype(np.float64))
    ]
    table = [
        {
            "above": round(i / bins, 6),
            "to": round((i + 1) / bins, 6),
            "images": int(images[i]),
            "confidence": round(100 * sums[0][i] / images[i], 3) if images[i] else None,
            "accuracy": round(100 * sums[1][i] / images[i], 3) if images[i] else None,
        }
        for i in range(bins)
    ]
    return {"ece": round(float(100 * np.abs(sums[0] - sums[1]).sum() / max(len(place), 1)), 3), "reliability": table}


def corruption_errors(
    errors: Mapping[str, Mapping[int, float]], baseline: Mapping[str, float], severities: Sequence[int]
) -> tuple[dict[str, Optional[float]], Optional[float]]:
    """Errors under corruption beside another model's, of Hendrycks and Dietterich (ICLR 2019).

    Args:
        errors: corruption -> severity -> share of images that are wrong.
        baseline: corruption -> the other model's mean error over these severities.
        severities: all that a corruption is measured by.

    Returns:
        Each corruption's error, 100 being the other model's, None where a severity was not measured; and their mean,
        None unless all were.
    """
    each: dict[str, Optional[float]] = {}
    for corruption, reference in baseline.items():
        by_severity = errors.get(corruption, {})
        whole = all(severity in by_severity for severity in severities)
        each[corruption] = (
            100 * sum(by_severity[s] for s in severities) / len(severities) / reference if whole else None
        )
    measured = [error for error in each.values() if error is not None]
    return each, sum(measured) / len(measured) if measured and len(measured) == len(each) else None
