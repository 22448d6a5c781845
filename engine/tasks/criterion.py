"""What a classifier's logits are compared with their targets by."""

from typing import Callable, Optional

import torch
import torch.nn.functional as F
from timm.loss import (
    AsymmetricLossMultiLabel,
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def create_criterion(
    loss: str,
    smoothing: float,
    target_threshold: float,
    mixed: bool,
    splits: int,
    weights: Optional[torch.Tensor] = None,
    adjustment: Optional[torch.Tensor] = None,
) -> Criterion:
    """Logits (B, C) and targets -> mean loss, by timm's criteria.

    Targets are (B,) labels, which are smoothed here, or, where images are `mixed`, (B, C), smoothed already.

    Args:
        loss: 'ce' or 'bce', a binary cross-entropy per class.
        target_threshold: of 'bce': targets above it become 1, others 0; 0: they stay as they are.
        splits: views of each image, see `data.transforms.Views`: cross-entropy of the first and divergence between all
            of them, for logits (splits * B, C) and targets (B,); 0: one image each.
        weights: of classes (C,), of 'ce' without `splits`, see `BalancedCrossEntropy`; None: all alike.
        adjustment: of logits (C,), likewise; None: none.
    """
    if weights is not None or adjustment is not None:
        return BalancedCrossEntropy(weights, adjustment, 0.0 if mixed else smoothing)
    if splits:
        return _in_float32(JsdCrossEntropy(splits, smoothing=smoothing))
    if loss == "bce":
        return _in_float32(BinaryCrossEntropy(smoothing, target_threshold or None))
    return SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(smoothing)


def create_label_criterion(
    loss: str, target_threshold: float, gamma_neg: float, gamma_pos: float, clip: float
) -> Criterion:
    """Logits (B, C) and targets (B, C), 1 for each class that an image has -> mean loss, by timm's criteria.

    Args:
        loss: 'bce', the mean of all binary cross-entropies; 'asymmetric', of Ridnik et al. (ICCV 2021, arXiv 2009.14119), a
            mean over images of sums over classes, computed in float32, for targets of 0 and 1.
        target_threshold: of 'bce', as `create_criterion`.
        gamma_neg, gamma_pos, clip: of 'asymmetric': the exponents by which easy classes that an image does not have, or has,
            count less, and how far the probability of the former is lowered.
    """
    if loss == "asymmetric":
        return AsymmetricLossMultiLabel(gamma_neg, gamma_pos, clip)
    return _in_float32(BinaryCrossEntropy(0.0, target_threshold or None))


class BalancedCrossEntropy:
    """The mean over images of - sum over c of w_c t_c log softmax(z + a)_c, with logits z and targets t, smoothed or mixed.

    It is a mean over images, not over their weights, so that it is the same however an update's images are split.

    Args:
        weights: w (C,); None: 1.
        adjustment: a (C,); None: 0.
        smoothing: of targets (B,); those of (B, C) are smoothed already.
    """

    def __init__(self, weights: Optional[torch.Tensor], adjustment: Optional[torch.Tensor], smoothing: float):
        self.weights, self.adjustment, self.smoothing = weights, adjustment, smoothing

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Logits (B, C), targets (B,) or (B, C) -> the loss, ()."""
        if self.weights is not None:
            self.weights = self.weights.to(logits.device)  # once: it stays there
        if self.adjustment is not None:
            self.adjustment = self.adjustment.to(logits.device)
            logits = logits + self.adjustment  # in float32
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1])
        # of probabilities torch takes the mean over images, of labels that over weights
        return F.cross_entropy(logits.float(), targets.float(), self.weights, label_smoothing=self.smoothing)


def _in_float32(criterion: Criterion) -> Criterion:
    """For criteria with sums that autocast leaves in 16 bits."""
    return lambda logits, targets: criterion(logits.float(), targets)
