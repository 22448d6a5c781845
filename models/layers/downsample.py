"""The two ways FAT makes a token map smaller."""

import torch
from torch import nn

from .depthwise import DepthwiseConv2d


class FineGrainedDownsample(nn.Module):
    """Fine-grained downsampling of the tokens that become keys and values (paper, Section 3.2).

    The map is halved step by step, `log2(window_size)` times, by a 5x5 depthwise convolution with stride 2 and a
    BatchNorm; a 1x1 convolution mixes the channels between two steps. `window_size` 1 is the identity.

    Args:
        dim: channels.
        window_size: side of the window that one output token stands for; a power of two.

    Shapes: (B, C, H, W) -> (B, C, ceil(H/window_size), ceil(W/window_size)).

    Raises:
        ValueError: `window_size` is not a power of two.
    """

    def __init__(self, dim: int, window_size: int):
        super().__init__()
        if window_size < 1 or window_size & (window_size - 1):
            raise ValueError(f"window_size is {window_size}; fine-grained downsampling needs a power of two")
        self.num_steps = window_size.bit_length() - 1
        for step in range(self.num_steps):
            self.add_module(f"conv{step}", DepthwiseConv2d(dim, 5, stride=2))
            self.add_module(f"bn{step}", nn.BatchNorm2d(dim))
            if step < self.num_steps - 1:
                self.add_module(f"linear{step}", nn.Conv2d(dim, dim, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():  # conv0, bn0, linear0, conv1, bn1, ...
            x = layer(x)
        return x


class StridedShortcut(nn.Sequential):
    """ShortCut(Y) of a stage's last block: 5x5 depthwise convolution with stride 2, BatchNorm, 1x1 convolution.

    Shapes: (B, in, H, W) -> (B, out, ceil(H/2), ceil(W/2)).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            DepthwiseConv2d(in_channels, 5, stride=2),
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 1),
        )
