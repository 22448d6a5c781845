"""One prediction from several views of an image."""

import math
from typing import Callable, Sequence

import torch
import torch.nn.functional as F


def mean_of_softmaxes(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """The logarithm of the mean probabilities of views, (B, classes) each, where an image has one class."""
    logs = torch.stack([F.log_softmax(of_view.float(), dim=1) for of_view in logits])
    return logs.logsumexp(0) - math.log(len(logits))


def mean_of_sigmoids(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """The logit of the mean probabilities of views, (B, classes) each, where each class is a question of its own."""
    stacked = torch.stack([of_view.float() for of_view in logits])
    return F.logsigmoid(stacked).logsumexp(0) - F.logsigmoid(-stacked).logsumexp(0)


def predict_views(
    model: Callable[[torch.Tensor], torch.Tensor],
    views: Sequence[torch.Tensor],
    flip: bool,
    mean: Callable[[Sequence[torch.Tensor]], torch.Tensor] = mean_of_softmaxes,
) -> torch.Tensor:
    """Logits for each image; where it has several views, `mean` of theirs.

    The model sees one view of all images at a time, so that memory and rounding are those of a plain batch.

    Args:
        model: (B, 3, H, W) -> (B, classes).
        views: of the same images in the same order, (B, 3, H, W) each.
        flip: whether the mirror image of each view is one more.
    """
    if flip:
        views = [one for view in views for one in (view, view.flip(3))]
    if len(views) == 1:
        return model(views[0])
    return mean([model(view) for view in views])
