"""UperNet (Xiao et al. 2018, arXiv 1807.10221), and the FCN head that helps to train it."""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .backbone import at_size
from .convolutions import Classifier, conv_bn_relu


class PyramidPooling(nn.Module):
    """A map beside its means over grids of several sizes, mixed by a 3x3 convolution.

    Shapes: (B, in_channels, H, W) -> (B, channels, H, W).
    """

    def __init__(self, in_channels: int, channels: int, scales: Sequence[int]):
        super().__init__()
        self.scales = tuple(scales)
        self.projections = nn.ModuleList(conv_bn_relu(in_channels, channels, 1) for _ in scales)
        self.mix = conv_bn_relu(in_channels + len(scales) * channels, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = (project(F.adaptive_avg_pool2d(x, scale)) for project, scale in zip(self.projections, self.scales))
        return self.mix(torch.cat([x, *(at_size(one, x.shape[2:]) for one in pooled)], dim=1))


class UperNetHead(nn.Module):
    """Pyramid pooling of the coarsest map, a feature pyramid on the others, all levels fused at the finest one's size.

    Shapes: a list of (B, in_channels[i], H_i, W_i), from fine to coarse -> (B, num_classes, H_0, W_0).

    In training its BatchNorms see one value per image and channel at pooling scale 1: a process needs two images or more.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int,
        pooling_scales: Sequence[int] = (1, 2, 3, 6),
        drop_rate: float = 0.1,
    ):
        super().__init__()
        self.pooling = PyramidPooling(in_channels[-1], channels, pooling_scales)
        self.laterals = nn.ModuleList(conv_bn_relu(one, channels, 1) for one in in_channels[:-1])
        self.outputs = nn.ModuleList(conv_bn_relu(channels, channels, 3) for _ in in_channels[:-1])
        self.fuse = conv_bn_relu(len(in_channels) * channels, channels, 3)
        self.classifier = Classifier(channels, num_classes, drop_rate)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps)] + [self.pooling(maps[-1])]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + at_size(levels[i], levels[i - 1].shape[2:])
        levels = [output(x) for output, x in zip(self.outputs, levels)] + levels[-1:]
        return self.classifier(self.fuse(torch.cat([at_size(x, levels[0].shape[2:]) for x in levels], dim=1)))


class FCNHead(nn.Sequential):
    """A 3x3 convolution and a classifier: (B, in_channels, H, W) -> (B, num_classes, H, W)."""

    def __init__(self, in_channels: int, num_classes: int, channels: int, drop_rate: float = 0.1):
        super().__init__(conv_bn_relu(in_channels, channels, 3), Classifier(channels, num_classes, drop_rate))
