"""The ways FAT makes a token map smaller: for FASA's keys and values, and at the end of a stage."""

import torch
from torch import nn

from .depthwise import DepthwiseConv2d


class FineGrainedDownsample(nn.Module):
    """Fine-grained downsampling of the tokens that become keys and values (paper, Section 3.2).

    The map is halved step by step, `log2(window_size)` times, by a 5x5 depthwise convolution with stride 2 and a
    BatchNorm; a 1x1 convolution mixes the channels between two steps.

    Args:
        dim: channels.
        window_size: side of the window that one output token stands for; a power of two, 2 or more.

    Shapes: (B, C, H, W) -> (B, C, ceil(H/window_size), ceil(W/window_size)).
    """

    def __init__(self, dim: int, window_size: int):
        super().__init__()
        num_steps = window_size.bit_length() - 1
        for step in range(num_steps):
            self.add_module(f"conv{step}", DepthwiseConv2d(dim, 5, stride=2))
            self.add_module(f"bn{step}", nn.BatchNorm2d(dim))
            if step < num_steps - 1:
                self.add_module(f"linear{step}", nn.Conv2d(dim, dim, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():  # conv0, bn0, linear0, conv1, bn1, ...
            x = layer(x)
        return x


class AvgPoolDownsample(nn.AvgPool2d):
    """The mean of each window, without parameters; at the border, of the part of a window that lies in the map.

    Arguments and shapes as of `FineGrainedDownsample`.
    """

    def __init__(self, dim: int, window_size: int):
        super().__init__(window_size, stride=window_size, ceil_mode=True, count_include_pad=False)


class StridedConvDownsample(nn.Sequential):
    """One depthwise convolution with stride `window_size` and a BatchNorm.

    The kernel has the side 2 window_size + 1, so that neighbouring windows overlap as in a fine-grained step, which this
    is for a window of 2.

    Arguments and shapes as of `FineGrainedDownsample`.
    """

    def __init__(self, dim: int, window_size: int):
        super().__init__(DepthwiseConv2d(dim, 2 * window_size + 1, stride=window_size), nn.BatchNorm2d(dim))


class AvgPoolStridedConvDownsample(nn.Module):
    """AvgPoolDownsample(x) + StridedConvDownsample(x).

    Arguments and shapes as of `FineGrainedDownsample`.
    """

    def __init__(self, dim: int, window_size: int):
        super().__init__()
        self.avg_pool = AvgPoolDownsample(dim, window_size)
        self.strided_conv = StridedConvDownsample(dim, window_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.avg_pool(x) + self.strided_conv(x)


DOWNSAMPLINGS = {  # of FASA's keys and values
    "fine_grained": FineGrainedDownsample,
    "avg_pool": AvgPoolDownsample,
    "strided_conv": StridedConvDownsample,
    "avg_pool_strided_conv": AvgPoolStridedConvDownsample,
}


def downsample_tokens(downsampling: str, dim: int, window_size: int) -> nn.Module:
    """The layer that a name in `DOWNSAMPLINGS` stands for; the identity for `window_size` 1.

    Raises:
        ValueError: `window_size` is not a power of two.
    """
    if window_size < 1 or window_size & (window_size - 1):
        raise ValueError(f"window_size is {window_size}; it must be a power of two")
    return DOWNSAMPLINGS[downsampling](dim, window_size) if window_size > 1 else nn.Identity()


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
