"""One prediction from several views of an image."""

import math
from typing import Callable, Sequence

import torch
import torch.nn.functional as F


def predict_views(
    model: Callable[[torch.Tensor], torch.Tensor], views: Sequence[torch.Tensor], flip: bool
) -> torch.Tensor:
    """Logits for each image; where it has several views, the logarithm of their mean probabilities.

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
    logs = torch.stack([F.log_softmax(model(view).float(), dim=1) for view in views])
    return logs.logsumexp(0) - math.log(len(views))
