"""Mask R-CNN (He et al. 2017, arXiv 1703.06870)."""

from typing import Optional, Sequence, Union

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from .proposals import ProposalNetwork
from .pyramid import PyramidBackbone
from .regions import RegionHeads
from .trainable import TrainableDetector

Target = dict[str, torch.Tensor]


class MaskRCNN(TrainableDetector, GeneralizedRCNN):
    """Mask R-CNN with one anchor size a level and masks of 28x28.

    torchvision counts the background as class 0; here, as in RetinaNet, classes are those of objects, from 0 on.

    Args:
        backbone: with levels at strides 4 to 64, see `mask_rcnn_pyramid`.
        The others are those of `RetinaNet`.

    `forward` takes and gives what `create_detector` says.
    """

    def __init__(
        self,
        backbone: PyramidBackbone,
        num_classes: int,
        min_size: Union[int, Sequence[int]] = 800,
        max_size: int = 1333,
        image_mean: Optional[Sequence[float]] = None,
        image_std: Optional[Sequence[float]] = None,
    ):
        super().__init__(
            backbone,
            ProposalNetwork(backbone.out_channels),
            RegionHeads(backbone.out_channels, num_classes + 1),
            GeneralizedRCNNTransform(
                min_size, max_size, image_mean or IMAGENET_DEFAULT_MEAN, image_std or IMAGENET_DEFAULT_STD
            ),
        )
        self.describe_heads(["backbone.fpn", "rpn", "roi_heads"])

    def forward(
        self, images: list[torch.Tensor], targets: Optional[list[Target]] = None
    ) -> Union[dict[str, torch.Tensor], list[Target]]:
        if self.training:
            return super().forward(images, [{**target, "labels": target["labels"] + 1} for target in targets])
        return [{**one, "labels": one["labels"] - 1} for one in super().forward(images)]
