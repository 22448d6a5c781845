"""Semantic FPN (Kirillov et al. 2019, arXiv 1901.02446), as the paper's segmentation uses it: neck and head."""

import math
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .backbone import at_size
from .convolutions import Classifier, conv_bn_relu, initialise_xavier


class FeaturePyramid(nn.Module):
    """A feature pyramid network: 1x1 lateral and 3x3 output convolutions with biases and without norms.

    Shapes: a list of (B, in_channels[i], H_i, W_i), from fine to coarse -> a list of (B, out_channels, H_i, W_i).
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels)
        initialise_xavier(self.modules())

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.laterals, maps)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[2:], mode="nearest")
        return [output(x) for output, x in zip(self.outputs, maps)]


class SemanticFPNHead(nn.Module):
    """Each level to the finest one's size, by 3x3 convolutions with doublings between them; their sum is classified.

    Args:
        strides: of the levels, from fine to coarse, each a power of two times the first.

    Shapes: a list of (B, in_channels, H_i, W_i) -> (B, num_classes, H_0, W_0).
    """

    def __init__(
        self,
        strides: Sequence[int],
        num_classes: int,
        in_channels: int,
        channels: int,
        drop_rate: float = 0.1,
    ):
        super().__init__()
        self.levels = nn.ModuleList(
            self._level(int(math.log2(stride / strides[0])), in_channels, channels) for stride in strides
        )
        self.classifier = Classifier(channels, num_classes, drop_rate)

    @staticmethod
    def _level(doublings: int, in_channels: int, channels: int) -> nn.Sequential:
        level = nn.Sequential(conv_bn_relu(in_channels, channels, 3))
        for i in range(doublings):
            if i > 0:
                level.append(conv_bn_relu(channels, channels, 3))
            level.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return level

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        summed = self.levels[0](maps[0])
        for level, x in zip(self.levels[1:], maps[1:]):
            summed = summed + at_size(level(x), summed.shape[2:])  # a map of odd size has been rounded up
        return self.classifier(summed)
