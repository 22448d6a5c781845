"""RetinaNet (Lin et al. 2017, arXiv 1708.02002)."""

from typing import Optional, Sequence, Union

import torch
from torchvision.models import detection
from torchvision.models.detection.retinanet import RetinaNetHead

from .anchors import StridedAnchors
from .pyramid import PyramidBackbone
from .trainable import TrainableDetector, keep_float32

Target = dict[str, torch.Tensor]
STRIDES = (8, 16, 32, 64, 128)
SCALES = tuple(4 * 2 ** (third / 3) for third in range(3))  # three in an octave


class BatchAveragedHead(RetinaNetHead):
    """torchvision's head, whose losses are divided by the matched anchors of the batch, not of each image.

    An image without any counts as one with one.
    """

    def compute_loss(
        self,
        targets: list[Target],
        head_outputs: dict[str, torch.Tensor],
        anchors: list[torch.Tensor],
        matched_idxs: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        matched = torch.stack([(one >= 0).sum().clamp(min=1) for one in matched_idxs])
        losses = {"classification": 0.0, "bbox_regression": 0.0}
        for i, weight in enumerate(matched / matched.sum()):
            outputs = {name: values[i : i + 1] for name, values in head_outputs.items()}
            of_image = super().compute_loss([targets[i]], outputs, [anchors[i]], [matched_idxs[i]])
            losses = {name: losses[name] + weight * value for name, value in of_image.items()}
        return losses


class RetinaNet(TrainableDetector, detection.RetinaNet):
    """RetinaNet with nine anchors a position, focal loss and L1 loss.

    Args:
        backbone: with levels at strides 8 to 128, see `retinanet_pyramid`.
        num_classes: classes of objects.
        min_size: px of an image's shorter side within the model; of several, one is drawn for each image in training,
            and the last is taken in evaluation.
        max_size: px that the longer side then has at most.
        image_mean, image_std: of the images' values.

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
        anchors = StridedAnchors(STRIDES, SCALES)
        super().__init__(
            backbone,
            num_classes,
            min_size,
            max_size,
            image_mean,
            image_std,
            anchor_generator=anchors,
            head=BatchAveragedHead(backbone.out_channels, anchors.num_anchors_per_location()[0], num_classes),
            detections_per_img=100,
        )
        keep_float32(self.head)
        self.describe_heads(["backbone.fpn", "head"])
