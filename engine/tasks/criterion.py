"""What a classifier's logits are compared with their targets by."""

from typing import Callable

import torch
from timm.loss import (
    AsymmetricLossMultiLabel,
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def create_criterion(loss: str, smoothing: float, target_threshold: float, mixed: bool, splits: int) -> Criterion:
    """Logits (B, C) and targets -> mean loss, by timm's criteria.

    Targets are (B,) labels, which are smoothed here, or, where images are `mixed`, (B, C), smoothed already.

    Args:
        loss: 'ce' or 'bce', a binary cross-entropy per class.
        target_threshold: of 'bce': targets above it become 1, others 0; 0: they stay as they are.
        splits: views of each image, see `data.transforms.Views`: cross-entropy of the first and divergence between all
            of them, for logits (splits * B, C) and targets (B,); 0: one image each.
    """
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


def _in_float32(criterion: Criterion) -> Criterion:
    """For criteria with sums that autocast leaves in 16 bits."""
    return lambda logits, targets: criterion(logits.float(), targets)
