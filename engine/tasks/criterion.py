"""What a classifier's logits are compared with their targets by."""

from typing import Callable

import torch
from timm.loss import (
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


def _in_float32(criterion: Criterion) -> Criterion:
    """For criteria with sums that autocast leaves in 16 bits."""
    return lambda logits, targets: criterion(logits.float(), targets)
