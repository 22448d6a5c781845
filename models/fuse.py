"""The deployed form of a FAT: the same function with fewer operators, for inference only."""

import copy
import platform
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .fat import FAT, FATStage
from .layers import (
    FASA,
    AvgPoolDownsample,
    AvgPoolStridedConvDownsample,
    ConvFFN,
    DepthwiseConv2d,
    FATBlock,
    LayerNorm,
)
from .layers.depthwise import HALF, identity_kernel
from .layers.fasa import interact

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
# names, algorithms
ONEDNN = {"none": ("none", ""), "relu": ("relu", ""), "gelu": ("gelu", "none"), "silu": ("swish", "")}


def fuse(model: nn.Module, dtype: torch.dtype = torch.float32) -> "FusedFAT":
    """An inference model with the values of `model`, which is left as it is.

    - BatchNorm is folded into the convolution before it, also behind `x + DWConv(x)`.
    - `x + DWConv(x)` becomes one convolution (in 16 bits a sum in the convolution's pass: see `DepthwiseConv2d`).
    - The two heads of a distilled model become one.
    - The weight and bias of a norm are folded into the 1x1 convolution or the head behind it. FASA's norm keeps its own
      where the downsampled tokens' first convolution pads with zeros, as its bias would not reach the border.
    - Activations and the sums of residual branches are computed in the convolution's pass on CPUs (oneDNN), and left to
      the compiler on GPUs.

    All of it is exact: in float32 only rounding differs, in bfloat16 and float16 so do the rounded weights.

    Args:
        model: in evaluation mode, of this package.
        dtype: float32, bfloat16 or float16 of weights and maps; images and logits stay float32.

    Raises:
        ValueError: another model or mode, or a dtype that this machine's CPU only emulates.
    """
    if not isinstance(model, FAT):
        raise ValueError(f"fuse takes models of models.fat, not {type(model).__name__}")
    if model.training:
        raise ValueError(
            "fuse takes a model in evaluation mode; call model.eval() first, training needs the unfused one"
        )
    if not isinstance(model.norm, nn.GroupNorm):
        raise ValueError("fuse takes whole models, this one has been pruned")
    if dtype not in (torch.float32, *HALF):
        raise ValueError(f"fuse knows float32, bfloat16 and float16, not {dtype}")
    device = next(model.parameters()).device
    if device.type == "cpu" and not is_native_on_cpu(dtype):
        raise ValueError(
            f"{str(dtype).removeprefix('torch.')} is emulated on this CPU and slower than float32; use float32"
        )
    with torch.no_grad():
        return FusedFAT(model, dtype).eval()


def is_native_on_cpu(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes convolutions in this dtype on this CPU without emulating it."""
    if dtype is torch.float32:
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    if platform.machine() == "x86_64":  # oneDNN also says so of CPUs that have AVX-512 alone
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return native and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # which ONEDNN_MAX_CPU_ISA can keep it from
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


class FusedConv2d(nn.Module):
    """A convolution, an activation, and the sum with another map, in one pass where oneDNN has it.

    Shapes: (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        dtype: torch.dtype,
        stride: int = 1,
        groups: int = 1,
        activation: str = "none",
    ):
        super().__init__()
        self.register_buffer("weight", weight.detach().to(dtype, memory_format=torch.channels_last, copy=True))
        self.register_buffer("bias", bias.detach().to(dtype, copy=True))
        self.stride = [stride, stride]
        self.padding = [weight.shape[-1] // 2] * 2
        self.groups = groups
        self.activation = activation
        self.packed: Optional[tuple] = None  # a weight, its version, and it in oneDNN's own order

    def forward(self, x: torch.Tensor, residual: Optional[torch.Tensor] = None) -> torch.Tensor:
        """The activation of the convolution, or without one its sum with `residual`, which has the result's shape."""
        packed = self._packed(x)
        if packed is None:
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
            return ACTIVATIONS[self.activation](y) if residual is None else y + residual
        where = (packed, self.bias, self.padding, self.stride, [1, 1], self.groups)
        if residual is None:
            name, algorithm = ONEDNN[self.activation]
            return torch.ops.mkldnn._convolution_pointwise(x, *where, name, [], algorithm)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, residual, *where, "add", 1.0, None, [], None)

    def _packed(self, x: torch.Tensor) -> Optional[torch.Tensor]:
        """The weight in oneDNN's order, put there once; None if `x` is not for oneDNN."""
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
            return None
        if x.shape[2:].numel() == 1:  # of a single position; torch 2.11 does not find its layout
            return None
        weight = self.weight
        version = 0 if weight.is_inference() else weight._version
        if self.packed is None or self.packed[0] is not weight or self.packed[1] != version:
            order = (self.padding, self.stride, [1, 1], self.groups, list(x.shape))
            self.packed = weight, version, torch.ops.mkldnn._reorder_convolution_weight(weight, *order)
        return self.packed[2]

    def __getstate__(self):
        return {**self.__dict__, "packed": None}  # oneDNN's tensors can be neither copied nor saved


class FusedAttention(nn.Module):
    """FASA; `norm` is the GroupNorm before it, whose weight and bias go into Q and, where there is no border, K and V."""

    def __init__(self, fasa: FASA, norm: nn.GroupNorm, dtype: torch.dtype):
        super().__init__()
        self.num_heads, self.interaction = fasa.num_heads, fasa.interaction
        padded = self.interaction != "local" and not isinstance(fasa.pool, (nn.Identity, AvgPoolDownsample))
        self.norm = fused_norm(norm, dtype, affine=padded)
        before = nn.Identity() if padded else norm
        self.q = FusedConv2d(*after_norm(before, fasa.q.weight, fasa.q.bias), dtype)
        if self.interaction != "local":
            self.pool = fused_downsample(fasa.pool, dtype)
            self.kv = FusedConv2d(*after_norm(before, fasa.kv.weight, fasa.kv.bias), dtype)
        if self.interaction != "global":
            local = fasa.local_mixer
            activation = "silu" if fasa.self_modulation else "none"
            self.local_mixer = FusedConv2d(local.weight, local.bias, dtype, groups=local.groups, activation=activation)
        self.mixer = FusedConv2d(fasa.mixer.weight, fasa.mixer.bias, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        q = self.q(normed)
        if self.interaction == "local":
            mixed = self.local_mixer(q)
        elif self.interaction == "global":
            mixed = self.attend(q, self.kv(self.pool(normed)))
        else:
            mixed = interact(self.interaction, self.local_mixer(q), self.attend(q, self.kv(self.pool(normed))))
        return self.mixer(mixed, x)

    def attend(self, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """softmax(Q K^T / sqrt d) V: (B, C, H, W), (B, 2C, h, w) -> (B, C, H, W); channels_last maps are not copied."""
        batch, channels, height, width = q.shape
        # (B, N, heads, d)
        q = q.permute(0, 2, 3, 1).reshape(batch, height * width, self.num_heads, channels // self.num_heads)
        # (B, n, heads, d)
        k, v = kv.permute(0, 2, 3, 1).reshape(batch, kv.shape[2] * kv.shape[3], 2, *q.shape[2:]).unbind(2)
        if q.device.type == "cpu":  # attention of 16-bit numbers is slower there
            q, k, v = q.float(), k.float(), v.float()
        g = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (B, heads, N, d)
        return g.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2).to(kv.dtype)


class FusedBlock(nn.Module):
    """One FAT block: CPE, FASA, ConvFFN or MLP."""

    def __init__(self, block: FATBlock, dtype: torch.dtype):
        super().__init__()
        self.sums = dtype in HALF  # x + DWConv(x) as a sum
        ffn = block.ffn
        convolves = isinstance(ffn, ConvFFN)
        self.has_residual = convolves and ffn.dwconv.residual
        self.cpe = self.dwconv = None
        if isinstance(block.cpe, DepthwiseConv2d):
            self.cpe = FusedConv2d(
                self._with_identity(block.cpe.weight), block.cpe.bias, dtype, groups=block.cpe.groups
            )
        self.attn = FusedAttention(block.attn, block.norm1, dtype)
        self.norm2 = fused_norm(block.norm2, dtype, affine=False)
        self.fc1 = FusedConv2d(*after_norm(block.norm2, ffn.fc1.weight, ffn.fc1.bias), dtype, activation="gelu")
        if self.sums and self.has_residual:  # the BatchNorm is behind the sum, and goes into the 1x1 convolution
            self.dwconv = FusedConv2d(ffn.dwconv.weight, ffn.dwconv.bias, dtype, groups=ffn.dwconv.groups)
            self.fc2 = FusedConv2d(*after_norm(ffn.bn, ffn.fc2.weight, ffn.fc2.bias), dtype)
        else:
            if convolves:
                weight = self._with_identity(ffn.dwconv.weight) if self.has_residual else ffn.dwconv.weight
                self.dwconv = FusedConv2d(
                    *before_norm(weight, ffn.dwconv.bias, ffn.bn), dtype, ffn.dwconv.stride[0], ffn.dwconv.groups
                )
            self.fc2 = FusedConv2d(ffn.fc2.weight, ffn.fc2.bias, dtype)
        self.shortcut = fused_downsample(block.downsample, dtype)

    def _with_identity(self, weight: torch.Tensor) -> torch.Tensor:
        return weight if self.sums else weight + identity_kernel(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.cpe is not None:
            x = self.cpe(x, x if self.sums else None)
        y = self.attn(x)
        hidden = self.fc1(self.norm2(y))
        if self.dwconv is not None:
            hidden = self.dwconv(hidden, hidden if self.sums and self.has_residual else None)
        return self.fc2(hidden, self.shortcut(y))


class FusedAvgPoolStridedConv(nn.Module):
    """AvgPoolStridedConvDownsample: the sum in the convolution's pass."""

    def __init__(self, layer: AvgPoolStridedConvDownsample, dtype: torch.dtype):
        super().__init__()
        self.avg_pool = copy.deepcopy(layer.avg_pool)
        (self.strided_conv,) = fused_downsample(layer.strided_conv, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.strided_conv(x, self.avg_pool(x))


class FusedFAT(nn.Module):
    """See `fuse`.

    Shapes: (B, in_chans, H, W) -> (B, num_classes), or the pooled features or the map, as the model it comes from.
    """

    def __init__(self, model: FAT, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.num_classes, self.global_pool = dtype, model.num_classes, model.global_pool
        stem = model.patch_embed
        self.stem = nn.Sequential(
            *(
                FusedConv2d(*before_norm(conv.weight, conv.bias, norm), dtype, conv.stride[0], activation="relu")
                for conv, norm, _ in (layer.conv for layer in (stem.conv1, stem.conv2, stem.conv3, stem.conv4))
            ),
            FusedConv2d(stem.conv5.weight, stem.conv5.bias, dtype),
        )
        self.stem_norm = fused_norm(stem.layernorm, dtype)
        stages: list[FATStage] = list(model.layers)
        self.blocks = nn.Sequential(*(FusedBlock(block, dtype) for stage in stages for block in stage.blocks))
        folded = bool(model.num_classes)
        self.norm = fused_norm(model.norm, dtype, affine=not folded)
        self.head = nn.Identity()
        if folded:
            weight, bias = mean_head(model)
            weight, bias = after_norm(model.norm, weight[..., None, None], bias)
            self.head = nn.Linear(*model.head.weight.shape[::-1])
            self.head.load_state_dict({"weight": weight[..., 0, 0], "bias": bias})
        self.to(next(model.parameters()).device).requires_grad_(False)

    def train(self, mode: bool = True) -> "FusedFAT":
        if mode:
            raise ValueError("a fused model cannot be trained; train the model that it was made of")
        return super().train(False)

    def _apply(self, fn, *args, **kwargs):
        if fn(torch.empty(0, dtype=self.dtype)).dtype is not self.dtype:
            raise ValueError(f"a fused model keeps its dtype, {self.dtype}; call fuse(model, dtype) for another one")
        return super()._apply(fn, *args, **kwargs)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            x = self.stem(images.to(self.dtype, memory_format=torch.channels_last))
            x = self.blocks(self.stem_norm(x))
            x = self.norm(x).float()
            if self.global_pool == "avg":
                x = x.mean((2, 3))
            return self.head(x)


def mean_head(model: FAT) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the head; of two heads, whose logits are averaged, their mean."""
    heads = [head for head in (model.head, model.head_dist) if head is not None]
    return tuple(torch.stack(values).mean(0) for values in zip(*((h.weight.double(), h.bias.double()) for h in heads)))


def fused_norm(norm: nn.GroupNorm, dtype: torch.dtype, affine: bool = True) -> LayerNorm:
    """The norm in a dtype, without its weight and bias if they are folded into what follows."""
    fused = LayerNorm(norm.num_channels, norm.eps, affine)
    if affine:
        fused.load_state_dict(norm.state_dict())
    return fused.to(dtype)


def fused_downsample(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A downsampling of FASA's tokens, or a block's shortcut: its depthwise and 1x1 convolutions in turn, without the norms."""
    if isinstance(layer, AvgPoolDownsample):
        return copy.deepcopy(layer)
    if isinstance(layer, AvgPoolStridedConvDownsample):
        return FusedAvgPoolStridedConv(layer, dtype)
    fused = nn.Sequential()
    layers = list(layer.children())
    for layer, following in zip(layers, [*layers[1:], None]):
        if isinstance(following, _BatchNorm):
            fused.append(
                FusedConv2d(*before_norm(layer.weight, layer.bias, following), dtype, layer.stride[0], layer.groups)
            )
        elif isinstance(layer, nn.Conv2d):
            fused.append(FusedConv2d(layer.weight, layer.bias, dtype))
    return fused


def before_norm(weight: torch.Tensor, bias: torch.Tensor, norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution with the BatchNorm behind it."""
    values = (value.double() for value in (weight, bias, norm.running_mean, norm.running_var))
    return fuse_conv_bn_weights(*values, norm.eps, norm.weight.double(), norm.bias.double())


def after_norm(norm: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a 1x1 convolution with the scale and shift of the norm before it: W (s x + t) + b.

    A GroupNorm's division by its standard deviation is no part of that; a BatchNorm's is.
    """
    weight, bias = weight.double(), bias.double()
    if isinstance(norm, nn.Identity):
        return weight, bias
    if not isinstance(norm, (nn.GroupNorm, _BatchNorm)):
        raise ValueError(f"fuse does not know the norm {type(norm).__name__}")
    scale, shift = norm.weight.double(), norm.bias.double()
    if isinstance(norm, _BatchNorm):
        scale = scale * (norm.running_var.double() + norm.eps).rsqrt()
        shift = shift - norm.running_mean.double() * scale
    return weight * scale[:, None, None], bias + (weight[..., 0, 0] @ shift)
