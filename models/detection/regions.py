"""What Mask R-CNN does with proposed regions: pooling, boxes, masks, and their losses."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from .trainable import keep_float32

Target = dict[str, torch.Tensor]
STRIDES = (4, 8, 16, 32)
BOX_FEATURES = 1024
MASK_CHANNELS = 256


class AlignedRoIAlign(MultiScaleRoIAlign):
    """RoIAlign with `aligned=True`, which torchvision's class does not offer, and with strides that are told, not guessed.

    A box of 224 px is pooled from the map at stride 16. Each bin has as many samples as its size asks for.
    """

    def __init__(self, output_size: int):
        super().__init__([str(level) for level in range(len(STRIDES))], output_size, sampling_ratio=0)
        self.level_of = LevelMapper(k_min=2, k_max=5)  # the strides' logarithms

    def forward(
        self, x: dict[str, torch.Tensor], boxes: list[torch.Tensor], image_shapes: list[tuple[int, int]]
    ) -> torch.Tensor:
        """(boxes of all images, channels, output_size, output_size)."""
        maps = [x[name] for name in self.featmap_names]
        regions = as_regions(boxes)
        levels = self.level_of(boxes)
        pooled = maps[0].new_zeros((len(regions), maps[0].shape[1], *self.output_size))
        for level, (one, stride) in enumerate(zip(maps, STRIDES)):
            here = torch.where(levels == level)[0]
            values = roi_align(one, regions[here], self.output_size, 1 / stride, self.sampling_ratio, aligned=True)
            pooled[here] = values.to(pooled.dtype)
        return pooled


def as_regions(boxes: list[torch.Tensor]) -> torch.Tensor:
    """Boxes (n_i, 4) of each image as (sum of n_i, 5), the image's number first."""
    return torch.cat([F.pad(one, (1, 0), value=float(image)) for image, one in enumerate(boxes)])


class RegionHeads(RoIHeads):
    """torchvision's, with the paper's sizes, pooling and losses.

    Args:
        channels: of the maps.
        num_classes: with the background, which is class 0.
    """

    def __init__(self, channels: int, num_classes: int):
        box_pool, mask_pool = AlignedRoIAlign(7), AlignedRoIAlign(14)
        super().__init__(
            box_pool,
            TwoMLPHead(channels * 7 * 7, BOX_FEATURES),
            FastRCNNPredictor(BOX_FEATURES, num_classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            mask_roi_pool=mask_pool,
            mask_head=MaskRCNNHeads(channels, (MASK_CHANNELS,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(MASK_CHANNELS, MASK_CHANNELS, num_classes),
        )
        for layer in (self.box_head.fc6, self.box_head.fc7):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.box_predictor.cls_score, 0.01), (self.box_predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        for layer in (self.mask_predictor.conv5_mask, self.mask_predictor.mask_fcn_logits):
            nn.init.zeros_(layer.bias)
        keep_float32(self.box_predictor)
        keep_float32(self.mask_predictor)

    def forward(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[torch.Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Optional[list[Target]] = None,
    ) -> tuple[list[Target], dict[str, torch.Tensor]]:
        """Detections in evaluation, as torchvision's; losses in training."""
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        pooled = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        losses = box_losses(*self.box_predictor(pooled), torch.cat(labels), torch.cat(deltas))

        objects = [torch.where(one > 0)[0] for one in labels]
        boxes = [one[chosen] for one, chosen in zip(proposals, objects)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        wanted = [
            cropped_masks(target["masks"], of_image, which[chosen], logits.shape[-1])
            for target, of_image, which, chosen in zip(targets, boxes, matched, objects)
        ]
        classes = torch.cat([one[chosen] for one, chosen in zip(labels, objects)])
        return [], {**losses, "loss_mask": mask_loss(logits, classes, torch.cat(wanted))}


def box_losses(
    class_logits: torch.Tensor, box_deltas: torch.Tensor, labels: torch.Tensor, deltas: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Cross-entropy of the sampled regions, and the L1 loss of those with an object over the number of sampled ones.

    Shapes: (N, classes), (N, 4 classes), (N,) with 0 for the background, (N, 4).
    """
    objects = torch.where(labels > 0)[0]
    of_class = box_deltas.unflatten(1, (-1, 4))[objects, labels[objects]]
    return {
        "loss_classifier": F.cross_entropy(class_logits, labels),
        "loss_box_reg": F.l1_loss(of_class, deltas[objects], reduction="sum") / len(labels),
    }


def cropped_masks(masks: torch.Tensor, boxes: torch.Tensor, which: torch.Tensor, size: int) -> torch.Tensor:
    """Of each box (n, 4) its object's mask, masks (objects, H, W), `which` (n,), at the head's size: 0 and 1, (n, size, size)."""
    regions = torch.cat([which[:, None].to(boxes), boxes], dim=1)
    return (roi_align(masks[:, None].to(boxes), regions, size, 1.0, 0, aligned=True)[:, 0] >= 0.5).to(boxes.dtype)


def mask_loss(logits: torch.Tensor, classes: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the objects' own classes' masks; 0, with gradients, without objects."""
    if not len(classes):
        return logits.sum() * 0
    of_class = logits[torch.arange(len(classes), device=classes.device), classes]
    return F.binary_cross_entropy_with_logits(of_class, wanted.to(of_class.dtype))
