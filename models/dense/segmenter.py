"""Whole models for semantic segmentation: a backbone, and a head that gives logits for each pixel."""

from typing import Any, Callable, Union

import torch
from torch import nn

from .backbone import DenseBackbone, at_size, group_matcher
from .semantic_fpn import FeaturePyramid, SemanticFPNHead
from .upernet import FCNHead, UperNetHead


class Segmenter(nn.Module):
    """What all segmenters have.

    Attributes:
        backbone: a `DenseBackbone`.
        num_classes: channels of the logits.
        auxiliary_weight: of the loss of the auxiliary logits; 0 where there are none.
    """

    auxiliary_weight = 0.0

    def __init__(self, backbone: DenseBackbone, num_classes: int):
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes

    def _finish(self) -> None:
        """Says, as timm's models do, which parts a checkpoint of classification does not have."""
        heads = tuple(name for name, _ in self.named_children() if name != "backbone")
        self.pretrained_cfg = {**self.backbone.network.pretrained_cfg, "classifier": heads}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing of the backbone."""
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float, ...]]:
        """timm's, for layer decay and for freezing: the backbone's layers, then everything else."""
        return group_matcher(self, coarse)


class SemanticFPN(Segmenter):
    """Semantic FPN.

    Shapes: (B, in_chans, H, W) -> logits (B, num_classes, H, W).
    """

    pyramid_channels = 256
    head_channels = 128

    def __init__(self, backbone: DenseBackbone, num_classes: int):
        super().__init__(backbone, num_classes)
        self.neck = FeaturePyramid(backbone.channels, self.pyramid_channels)
        self.head = SemanticFPNHead(backbone.strides, num_classes, self.pyramid_channels, self.head_channels)
        self._finish()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return at_size(self.head(self.neck(self.backbone(images))), images.shape[2:])


class UperNet(Segmenter):
    """UperNet; in training with an FCN head on the map at stride 16, the third.

    Shapes: (B, in_chans, H, W) -> logits (B, num_classes, H, W); in training, these and the auxiliary head's, as many.
    """

    auxiliary_weight = 0.4
    head_channels = 512
    auxiliary_channels = 256

    def __init__(self, backbone: DenseBackbone, num_classes: int):
        super().__init__(backbone, num_classes)
        self.head = UperNetHead(backbone.channels, num_classes, self.head_channels)
        self.auxiliary_head = FCNHead(backbone.channels[2], num_classes, self.auxiliary_channels)
        self._finish()

    def forward(self, images: torch.Tensor) -> Union[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        maps, size = self.backbone(images), images.shape[2:]
        logits = at_size(self.head(maps), size)
        if not self.training:
            return logits
        return logits, at_size(self.auxiliary_head(maps[2]), size)


SEGMENTERS = {"semantic_fpn": SemanticFPN, "upernet": UperNet}


def create_segmenter(name: str, backbone: str, num_classes: int, **backbone_args: Any) -> Segmenter:
    """A segmenter by name, over a timm model by name.

    Args:
        name: one of `SEGMENTERS`.
        backbone, **backbone_args: see `DenseBackbone`.
        num_classes: classes of a pixel.

    Raises:
        ValueError: unknown name.
        RuntimeError: timm does not know the backbone, or it no `features_only`.
    """
    if name not in SEGMENTERS:
        raise ValueError(f"segmenter is {name!r}; known: {', '.join(SEGMENTERS)}")
    return SEGMENTERS[name](DenseBackbone(backbone, **backbone_args), num_classes)
