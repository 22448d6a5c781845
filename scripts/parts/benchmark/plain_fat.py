"""FAT as its equations read, one operator after the other: what `benchmark.py` measures the project's forms against.

Nothing here is tuned: NCHW, explicit softmax, no fused operator, every product and sigmoid on its own, as an eager
PyTorch implementation is written first. Parameters have the names of `models.FAT`, so that both load the same weights.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.fat import FAT
from models.layers import ConvFFN, DepthwiseConv2d, FATBlock, FineGrainedDownsample


def depthwise(channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels)


class PlainFASA(nn.Module):
    """l = DWConv(Q), l' = l * sigmoid(l), g = softmax(Q K^T / sqrt d) V; W(l' * (sigmoid(g) * g))."""

    def __init__(self, dim: int, num_heads: int, kernel_size: int, window_size: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Conv2d(dim, dim, 1)
        self.kv = nn.Conv2d(dim, 2 * dim, 1)
        self.local_mixer = depthwise(dim, kernel_size)
        self.mixer = nn.Conv2d(dim, dim, 1)
        self.pool = nn.Sequential()
        steps = window_size.bit_length() - 1
        for step in range(steps):
            self.pool.add_module(f"conv{step}", depthwise(dim, 5, stride=2))
            self.pool.add_module(f"bn{step}", nn.BatchNorm2d(dim))
            if step < steps - 1:
                self.pool.add_module(f"linear{step}", nn.Conv2d(dim, dim, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, dim, height, width = x.shape
        q = self.q(x)
        local = self.local_mixer(q)
        local = local * torch.sigmoid(local)
        k, v = self.kv(self.pool(x)).reshape(batch, 2, self.num_heads, dim // self.num_heads, -1).unbind(1)
        k, v = k.contiguous(), v.transpose(-1, -2).contiguous()  # (B, heads, d, n), (B, heads, n, d)
        tokens = q.reshape(batch, self.num_heads, dim // self.num_heads, -1).transpose(-1, -2).contiguous()
        attention = torch.softmax(tokens @ k * (dim // self.num_heads) ** -0.5, dim=-1)
        context = (attention @ v).transpose(-1, -2).reshape(batch, dim, height, width)
        return self.mixer(local * (torch.sigmoid(context) * context))


class PlainConvFFN(nn.Module):
    """1x1 convolution, GELU, depthwise convolution (with a residual at stride 1), BatchNorm, 1x1 convolution."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, kernel_size: int, stride: int):
        super().__init__()
        self.stride = stride
        self.fc1 = nn.Conv2d(in_channels, hidden_channels, 1)
        self.dwconv = depthwise(hidden_channels, kernel_size, stride)
        self.bn = nn.BatchNorm2d(hidden_channels)
        self.fc2 = nn.Conv2d(hidden_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.fc1(x))
        x = x + self.dwconv(x) if self.stride == 1 else self.dwconv(x)
        return self.fc2(self.bn(x))


class PlainBlock(nn.Module):
    """X = CPE(X) + X; Y = FASA(LN(X)) + X; Z = ConvFFN(LN(Y)) + ShortCut(Y)."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        num_heads: int,
        kernel_size: int,
        window_size: int,
        mlp_ratio: float,
        mlp_kernel_size: int,
        stride: int,
    ):
        super().__init__()
        self.cpe = depthwise(dim, kernel_size)
        self.norm1 = nn.GroupNorm(1, dim)
        self.attn = PlainFASA(dim, num_heads, kernel_size, window_size)
        self.norm2 = nn.GroupNorm(1, dim)
        self.downsample = (
            nn.Sequential(depthwise(dim, 5, 2), nn.BatchNorm2d(dim), nn.Conv2d(dim, out_dim, 1))
            if stride == 2
            else nn.Identity()
        )
        self.ffn = PlainConvFFN(dim, int(mlp_ratio * dim), out_dim, mlp_kernel_size, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cpe(x) + x
        y = self.attn(self.norm1(x)) + x
        return self.ffn(self.norm2(y)) + self.downsample(y)


class PlainStage(nn.Module):
    def __init__(self, blocks: list[PlainBlock]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class PlainStem(nn.Module):
    """3x3 convolutions, each with BatchNorm and ReLU, the first two with stride 2; 1x1 convolution; norm."""

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        for number, (before, after, stride) in enumerate(
            [(in_chans, dim // 2, 2), (dim // 2, dim, 2), (dim, dim, 1), (dim, dim, 1)], start=1
        ):
            layer = nn.Module()
            layer.conv = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())
            self.add_module(f"conv{number}", layer)
        self.conv5 = nn.Conv2d(dim, dim, 1)
        self.layernorm = nn.GroupNorm(1, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer.conv(x)
        return self.layernorm(self.conv5(x))


class PlainFAT(nn.Module):
    """The plain form of a FAT as it is released: the same parameters, values and gradients.

    Drop path and dropout are left out; they are no part of what is timed.

    Raises:
        ValueError: the model is one of the paper's ablations.
    """

    def __init__(self, model: FAT):
        super().__init__()
        self.patch_embed = PlainStem(model.in_chans, model.patch_embed.conv5.out_channels)
        self.layers = nn.ModuleList()
        for stage in model.layers:
            self.layers.append(PlainStage([self._block(block) for block in stage.blocks]))
        self.norm = nn.GroupNorm(1, model.num_features)
        self.head = nn.Linear(model.num_features, model.num_classes)
        self.load_state_dict(model.state_dict())

    @staticmethod
    def _block(block: FATBlock) -> PlainBlock:
        attn, ffn = block.attn, block.ffn
        released = (
            attn.interaction == "released"
            and attn.self_modulation
            and isinstance(attn.pool, (FineGrainedDownsample, nn.Identity))
            and isinstance(block.cpe, DepthwiseConv2d)
            and isinstance(ffn, ConvFFN)
        )
        if not released:
            raise ValueError(
                "the plain form is that of the released FAT, this model has another interaction, downsampling, cpe, "
                "self_modulation or ffn"
            )
        dim = block.cpe.in_channels
        return PlainBlock(
            dim,
            ffn.fc2.out_channels,
            attn.num_heads,
            block.cpe.kernel_size[0],
            attn.window_size,
            ffn.fc1.out_channels / dim,
            ffn.dwconv.kernel_size[0],
            ffn.dwconv.stride[0],
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images)
        for stage in self.layers:
            x = stage(x)
        return self.head(self.norm(x).mean((2, 3)))
