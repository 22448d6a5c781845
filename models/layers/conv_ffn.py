"""The feed-forward networks: ConvFFN, with a depthwise convolution inside (paper, Section 3.1), and one without."""

import torch
import torch.nn.functional as F
from torch import nn

from .depthwise import DepthwiseConv2d

FFNS = ("conv", "mlp")


class ConvFFN(nn.Module):
    """1x1 convolution, GELU, depthwise convolution, BatchNorm, 1x1 convolution.

    With stride 1 the depthwise convolution has a residual connection; with stride 2 it makes the map smaller, as in
    the last block of a stage.

    Args:
        in_channels, hidden_channels, out_channels: channels before, inside and after.
        kernel_size: side of the depthwise convolution, odd.
        stride: 1 or 2.

    Shapes: (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.fc1 = nn.Conv2d(in_channels, hidden_channels, 1)
        self.dwconv = DepthwiseConv2d(hidden_channels, kernel_size, stride, residual=stride == 1)
        self.bn = nn.BatchNorm2d(hidden_channels)
        self.fc2 = nn.Conv2d(hidden_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.fc1(x))  # (B, hidden, H, W)
        x = self.dwconv(x)  # with stride 1: DWConv(x) + x; (B, hidden, H/stride, W/stride)
        return self.fc2(self.bn(x))  # (B, out, H/stride, W/stride)


class MLP(nn.Module):
    """1x1 convolution, GELU, 1x1 convolution: ConvFFN without its depthwise convolution and BatchNorm.

    Args:
        channels, hidden_channels: channels outside and inside.

    Shapes: (B, channels, H, W) -> the same.
    """

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1)
        self.fc2 = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # (B, channels, H, W)
