"""A backbone with torchvision's feature pyramid network, as torchvision's detectors take it."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from ..dense.backbone import DenseBackbone
from ..dense.convolutions import initialise_xavier

CHANNELS = 256


class ConvolvedLevels(ExtraFPNBlock):
    """P6 and P7: strided 3x3 convolutions of P5 and of P6, without the ReLU that torchvision's LastLevelP6P7 has between them."""

    def __init__(self):
        super().__init__()
        self.p6 = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)

    def forward(
        self, results: list[torch.Tensor], x: list[torch.Tensor], names: list[str]
    ) -> tuple[list[torch.Tensor], list[str]]:
        p6 = self.p6(_of_two_columns(results[-1]))
        return [*results, p6, self.p7(_of_two_columns(p6))], [*names, "p6", "p7"]


def _of_two_columns(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B, C, H, 1) with a column of the zeros that padding would add; wider ones as they are.

    torch 2.15's 3x3 convolutions in bfloat16 on processors with AVX-512 BF16 give a wrong gradient of the weights, often NaN,
    for stride 2 on maps of one column.
    """
    return F.pad(maps, (0, 1)) if maps.shape[-1] == 1 else maps


class PyramidBackbone(nn.Module):
    """The backbone's maps through a feature pyramid network without norms.

    Args:
        body: the backbone.
        extra_levels: `ConvolvedLevels`, or torchvision's LastLevelMaxPool.

    Attributes:
        out_channels: of every level, as torchvision's detectors ask.

    Shapes: (B, 3, H, W) -> {name: (B, 256, H_i, W_i)}, from fine to coarse; the names of the body's levels are '0', '1', ...
    """

    def __init__(self, body: DenseBackbone, extra_levels: ExtraFPNBlock):
        super().__init__()
        self.out_channels = CHANNELS
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.channels, CHANNELS, extra_levels)
        initialise_xavier(self.fpn.modules())

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn({str(level): one for level, one in enumerate(self.body(images))})


def retinanet_pyramid(backbone: str, **backbone_args) -> PyramidBackbone:
    """Levels at strides 8, 16, 32, and P6 and P7 at 64 and 128."""
    return PyramidBackbone(DenseBackbone(backbone, strides=(8, 16, 32), **backbone_args), ConvolvedLevels())


def mask_rcnn_pyramid(backbone: str, **backbone_args) -> PyramidBackbone:
    """Levels at strides 4, 8, 16, 32, and every second value of the last, at 64."""
    return PyramidBackbone(DenseBackbone(backbone, strides=(4, 8, 16, 32), **backbone_args), LastLevelMaxPool())
