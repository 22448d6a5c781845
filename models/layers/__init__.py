"""Building blocks of FAT, one concept per file, in the order of the paper's Section 3."""

from .block import FATBlock
from .conv_ffn import FFNS, MLP, ConvFFN
from .depthwise import DepthwiseConv2d
from .downsample import (
    DOWNSAMPLINGS,
    AvgPoolDownsample,
    AvgPoolStridedConvDownsample,
    FineGrainedDownsample,
    StridedConvDownsample,
    StridedShortcut,
)
from .fasa import FASA, INTERACTIONS
from .norm import LayerNorm
from .stem import ConvStem

__all__ = [
    "FATBlock", "ConvFFN", "MLP", "FFNS", "FineGrainedDownsample", "AvgPoolDownsample", "StridedConvDownsample",
    "AvgPoolStridedConvDownsample", "DOWNSAMPLINGS", "StridedShortcut", "FASA", "INTERACTIONS", "ConvStem", "DepthwiseConv2d",
    "LayerNorm",
]  # fmt: skip
