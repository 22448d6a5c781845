"""Convolutional stem: an image becomes a map of tokens at a quarter of its resolution (paper, Section 3.1)."""

import torch
from torch import nn

from .norm import LayerNorm


class ConvBNReLU(nn.Module):
    """3x3 convolution, BatchNorm, ReLU: (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class ConvStem(nn.Module):
    """Four 3x3 convolutions (the first two with stride 2), a 1x1 projection and a norm.

    Args:
        in_chans: image channels.
        embed_dim: channels of the tokens, even.

    Shapes: (B, in_chans, H, W) -> (B, embed_dim, ceil(H/4), ceil(W/4)).
    """

    def __init__(self, in_chans: int, embed_dim: int):
        super().__init__()
        self.conv1 = ConvBNReLU(in_chans, embed_dim // 2, stride=2)
        self.conv2 = ConvBNReLU(embed_dim // 2, embed_dim, stride=2)
        self.conv3 = ConvBNReLU(embed_dim, embed_dim, stride=1)
        self.conv4 = ConvBNReLU(embed_dim, embed_dim, stride=1)
        self.conv5 = nn.Conv2d(embed_dim, embed_dim, 1)
        self.layernorm = LayerNorm(embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.conv1(x))  # (B, C, H/4, W/4)
        x = self.conv4(self.conv3(x))
        return self.layernorm(self.conv5(x))
