"""Detectors by name."""

from typing import Any, Optional, Sequence, Union

from torch import nn

from .mask_rcnn import MaskRCNN
from .pyramid import mask_rcnn_pyramid, retinanet_pyramid
from .retinanet import RetinaNet

DETECTORS = {"retinanet": (RetinaNet, retinanet_pyramid), "mask_rcnn": (MaskRCNN, mask_rcnn_pyramid)}


def create_detector(
    name: str,
    backbone: str,
    num_classes: int,
    min_size: Union[int, Sequence[int]] = 800,
    max_size: int = 1333,
    image_mean: Optional[Sequence[float]] = None,
    image_std: Optional[Sequence[float]] = None,
    **backbone_args: Any,
) -> nn.Module:
    """A detector by name, over a timm model by name.

    In training `model(images, targets)` gives a dict of losses, whose sum is minimised: of RetinaNet `classification` and
    `bbox_regression`; of Mask R-CNN `loss_objectness`, `loss_rpn_box_reg`, `loss_classifier`, `loss_box_reg` and
    `loss_mask`. In evaluation `model(images)` gives for each image a dict of at most 100 `boxes` (N, 4), `labels` (N,),
    `scores` (N,), the highest first, and of Mask R-CNN `masks` (N, 1, H, W), probabilities; all in px of the image given.

    Images are a list of float (3, H_i, W_i), between 0 and 1 for the default mean and standard deviation; the model
    normalises and resizes them, and pads a batch to multiples of 32 px. Targets are dicts of `boxes` (N, 4), float, as
    x1, y1, x2, y2 with positive width and height, `labels` (N,), int64 from 0 to num_classes - 1, and for Mask R-CNN `masks`
    (N, H_i, W_i), 0 and 1. N may be 0. Which anchors and regions the losses are of is drawn from torch's generator of
    the device, and which `min_size`, of several, from the CPU's.

    Args:
        name: one of `DETECTORS`.
        backbone, **backbone_args: see `models.DenseBackbone`.
        num_classes, min_size, max_size, image_mean, image_std: see `RetinaNet`.

    Raises:
        ValueError: unknown name.
        RuntimeError: timm does not know the backbone, or it no `features_only`.
    """
    if name not in DETECTORS:
        raise ValueError(f"detector is {name!r}; known: {', '.join(DETECTORS)}")
    detector, pyramid = DETECTORS[name]
    return detector(pyramid(backbone, **backbone_args), num_classes, min_size, max_size, image_mean, image_std)
