"""The FAT block (paper, Section 3.1)."""

import torch
from timm.layers import DropPath
from torch import nn

from .conv_ffn import FFNS, MLP, ConvFFN
from .depthwise import DepthwiseConv2d
from .downsample import StridedShortcut
from .fasa import FASA
from .norm import LayerNorm


class FATBlock(nn.Module):
    """One FAT block; LN is a GroupNorm with one group:

        X = CPE(X_in) + X_in                 CPE: depthwise convolution, conditional position encoding
        Y = FASA(LN(X)) + X
        Z = ConvFFN(LN(Y)) + ShortCut(Y)

    ShortCut is the identity, except in the last block of a stage, where ConvFFN and ShortCut have stride 2 and change
    the channels.

    Without `cpe` X = X_in. With `ffn` 'mlp' an MLP takes ConvFFN's place, Z = MLP(LN(Y)) + Y, in blocks with stride 1; one
    with stride 2 keeps ConvFFN, whose strided convolution is what makes the map smaller.

    Args:
        dim, out_dim: channels before and after; `stride` 1 asks for `out_dim == dim`.
        num_heads, kernel_size, window_size, interaction, downsampling, self_modulation: as in `FASA`; CPE has the same
            `kernel_size`.
        mlp_ratio, mlp_kernel_size: ConvFFN's (and MLP's) hidden channels over `dim`, and ConvFFN's kernel.
        stride: 1, or 2 to make the map smaller.
        drop_path_rate: probability of dropping a residual branch per sample.
        cpe: whether there is a CPE.
        ffn: 'conv' or 'mlp'.

    Shapes: (B, dim, H, W) -> (B, out_dim, ceil(H/stride), ceil(W/stride)).

    Raises:
        ValueError: unknown `ffn`, or a value that `FASA` refuses.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        num_heads: int,
        kernel_size: int,
        window_size: int,
        mlp_ratio: float,
        mlp_kernel_size: int,
        stride: int = 1,
        drop_path_rate: float = 0.0,
        interaction: str = "released",
        downsampling: str = "fine_grained",
        cpe: bool = True,
        self_modulation: bool = True,
        ffn: str = "conv",
    ):
        super().__init__()
        if ffn not in FFNS:
            raise ValueError(f"ffn is {ffn!r}; known: {', '.join(FFNS)}")
        hidden_dim = int(mlp_ratio * dim)
        self.cpe = DepthwiseConv2d(dim, kernel_size, residual=True) if cpe else nn.Identity()
        self.norm1 = LayerNorm(dim, before_convolution=True)
        self.attn = FASA(dim, num_heads, kernel_size, window_size, interaction, downsampling, self_modulation)
        self.norm2 = LayerNorm(dim, before_convolution=True)
        self.downsample = StridedShortcut(dim, out_dim) if stride == 2 else nn.Identity()
        if ffn == "mlp" and stride == 1:
            self.ffn = MLP(dim, hidden_dim)
        else:
            self.ffn = ConvFFN(dim, hidden_dim, out_dim, mlp_kernel_size, stride)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.feed_forward(self.mix(x))

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        """X_in -> Y: position encoding and attention, at the block's own resolution."""
        x = self.cpe(x)  # CPE(X) + X: (B, dim, H, W)
        return self.drop_path(self.attn(self.norm1(x))) + x

    def feed_forward(self, y: torch.Tensor) -> torch.Tensor:
        """Y -> Z: the feed-forward network, at the block's output resolution; after `prune` Z = Y."""
        if self.ffn is None:
            return y
        return self.drop_path(self.ffn(self.norm2(y))) + self.downsample(y)  # (B, out_dim, H/stride, W/stride)

    def prune(self) -> None:
        """Takes the feed-forward network away, so that the block ends with Y."""
        self.norm2 = self.ffn = self.downsample = None
