"""Fully Adaptive Self-Attention: local and global context that modulate each other (paper, Section 3.2)."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from .depthwise import DepthwiseConv2d
from .downsample import DOWNSAMPLINGS, downsample_tokens

INTERACTIONS = ("released", "bidirectional", "add", "concat", "local", "global")


class FASA(nn.Module):
    """Fully Adaptive Self-Attention.

    With Q = W_q X, D the downsampling of the tokens and `*` the point-wise product:

        l  = DWConv(Q)                                   local aggregation
        l' = l * sigmoid(l) = SiLU(l)                    its self-modulation
        g  = softmax(Q K^T / sqrt(d)) V,  [K, V] = W_kv D(X)     global aggregation

    `interaction` says how the two sides meet before the output projection W:

        released        W(l' * sigmoid(g) * g)                = W(SiLU(l) * SiLU(g))
        bidirectional   W((l' * sigmoid(g)) * (g * sigmoid(l')))   the paper's equation, both factors
        add             W(l' + g)
        concat          W([l', g])                            W maps 2C to C
        local           W(l')                                 no keys and values at all
        global          W(g)                                  no DWConv

    The released code, and so the published tables, use `released`. It looks one-sided but is not: SiLU(l) * SiLU(g)
    = l g sigmoid(l) sigmoid(g) = (l * sigmoid(g)) * (g * sigmoid(l)), symmetric in l and g. Each side is modulated by
    the other's sigmoid once, if the self-modulation is counted as the global side's factor. `bidirectional` keeps the
    self-modulation and adds that factor. Both forms have the same parameters.

    `self_modulation` False leaves l' = l. As SiLU(l) * SiLU(g) reads both ways, `bidirectional` without it is the same
    function as `released` with it; `released` without it is W(l * sigmoid(g) * g), where l modulates nothing.

    `downsampling` says what D is; each makes the map smaller by `window_size`, and is the identity for a window of 1:

        fine_grained            halvings in turn, each a 5x5 depthwise convolution and a BatchNorm (the paper's)
        avg_pool                the mean of each window
        strided_conv            one depthwise convolution with stride window_size, and a BatchNorm
        avg_pool_strided_conv   the sum of these two

    Args:
        dim: channels C, divisible by `num_heads`.
        num_heads: attention heads.
        kernel_size: side of the local depthwise convolution, odd.
        window_size: reduction of the keys' and values' map, a power of two.
        interaction: one of `INTERACTIONS`.
        downsampling: one of `DOWNSAMPLINGS`; `local` has none.
        self_modulation: l' = l * sigmoid(l); without it l' = l. `global` has no l.

    Shapes: (B, C, H, W) -> (B, C, H, W), any H and W.

    Raises:
        ValueError: unknown `interaction` or `downsampling`, `dim` not divisible by `num_heads`, `kernel_size` even, or `window_size` no power of two.
    """

    has_local: Final[bool]  # TorchScript leaves out a branch whose layers are not there
    has_global: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        window_size: int,
        interaction: str = "released",
        downsampling: str = "fine_grained",
        self_modulation: bool = True,
    ):
        super().__init__()
        if interaction not in INTERACTIONS:
            raise ValueError(f"interaction is {interaction!r}; known: {', '.join(INTERACTIONS)}")
        if downsampling not in DOWNSAMPLINGS:
            raise ValueError(f"downsampling is {downsampling!r}; known: {', '.join(DOWNSAMPLINGS)}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even; the map would not keep its size")
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.window_size = num_heads, window_size
        self.interaction = interaction
        self.has_local, self.has_global = interaction != "global", interaction != "local"
        self.self_modulation = self_modulation
        # Layers stand in the order of the released state dict.
        self.q = nn.Conv2d(dim, dim, 1)
        if self.has_global:
            self.kv = nn.Conv2d(dim, 2 * dim, 1)
        if self.has_local:
            self.local_mixer = DepthwiseConv2d(dim, kernel_size)
        self.mixer = nn.Conv2d(2 * dim if interaction == "concat" else dim, dim, 1)
        if self.has_global:
            self.pool = downsample_tokens(downsampling, dim, window_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x)  # (B, C, H, W)
        if not self.has_global:
            mixed = self.local_aggregation(q)
        elif not self.has_local:
            mixed = self.global_aggregation(q, x)
        else:
            mixed = interact(self.interaction, self.local_aggregation(q), self.global_aggregation(q, x))
        return self.mixer(mixed)

    def local_aggregation(self, q: torch.Tensor) -> torch.Tensor:
        l = self.local_mixer(q)  # noqa: E741
        return F.silu(l) if self.self_modulation else l  # l' = l * sigmoid(l): (B, C, H, W)

    def global_aggregation(self, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        k, v = self.kv(self.pool(x)).chunk(2, dim=1)  # (B, C, h, w) each
        g = F.scaled_dot_product_attention(self.to_tokens(q), self.to_tokens(k), self.to_tokens(v))  # (B, heads, HW, d)
        return g.transpose(-1, -2).reshape(q.shape)  # (B, C, H, W)

    def to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(-1, -2)  # (B, heads, N, d)


def interact(interaction: str, l: torch.Tensor, g: torch.Tensor) -> torch.Tensor:  # noqa: E741
    """The local side l' and the global side g, (B, C, H, W) each, as `FASA` says of each interaction."""
    if interaction == "released":
        return l * F.silu(g)
    if interaction == "bidirectional":
        return (l * torch.sigmoid(g)) * (g * torch.sigmoid(l))
    if interaction == "add":
        return l + g
    return torch.cat([l, g], dim=1)  # concat: (B, 2C, H, W)
