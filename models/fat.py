"""FAT, the vision transformer with bidirectional interaction (NeurIPS 2023, arXiv 2306.00396), for timm's registry."""

import contextlib
from typing import Any, Optional, Sequence, Union

import torch
from timm.layers import calculate_drop_path_rates, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import nn

from .checkpointing import checkpointed
from .layers import ConvStem, FATBlock, LayerNorm

__all__ = ["FAT", "FATFeatures", "FATStage"]


class FATStage(nn.Module):
    """`depth` FAT blocks; the last one makes the map smaller if `downsample`.

    Shapes: (B, dim, H, W) -> (B, out_dim, H/2, W/2) with `downsample`, else (B, dim, H, W).
    """

    def __init__(self, dim: int, out_dim: int, drop_path_rates: Sequence[float], downsample: bool, **block_args: Any):
        super().__init__()
        last = len(drop_path_rates) - 1
        self.downsample = downsample
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(
            FATBlock(
                dim,
                out_dim if i == last else dim,
                stride=2 if downsample and i == last else 1,
                drop_path_rate=rate,
                **block_args,
            )
            for i, rate in enumerate(drop_path_rates)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_with_feature(x)[0]

    def forward_with_feature(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the stage's output and its finest finished map (B, dim, H, W): Y of the last block, before the
        ConvFFN that makes it smaller; without `downsample`, and after `prune`, both are the same.
        """
        if not torch.jit.is_scripting() and self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return self._checkpointed(x)
        y = x
        for block in self.blocks:
            y = block.mix(x)
            x = block.feed_forward(y)
        return x, y if self.downsample else x

    @torch.jit.unused
    def _checkpointed(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for block in self.blocks[:-1]:
            x = checkpointed(block, block, x)
        last = self.blocks[-1]
        y = checkpointed(last, last.mix, x)
        z = checkpointed(last, last.feed_forward, y)
        return z, y if self.downsample else z

    def prune(self) -> None:
        """Takes away what makes the map smaller, so that the stage ends with its finest map."""
        if self.downsample:
            last = self.blocks[-1]
            last.prune()
            self.downsample = False


class FAT(nn.Module):
    """FAT for image classification and as a backbone.

    Args:
        in_chans: image channels.
        num_classes: size of the linear head; 0 for none.
        embed_dims, depths, num_heads: per stage: channels, blocks, attention heads.
        kernel_sizes: per stage: kernel of CPE and of FASA's local side.
        window_sizes: per stage: reduction of FASA's keys and values, powers of two.
        mlp_ratios, mlp_kernel_sizes: per stage: ConvFFN's hidden ratio and kernel.
        drop_rate: dropout before the head.
        drop_path_rate: drop path of the last block; it grows linearly from 0 at the first.
        interaction: how FASA's two sides meet, see `models.layers.FASA`.
        downsampling: what makes the map of FASA's keys and values smaller, see there.
        cpe: whether blocks have a conditional position encoding.
        self_modulation: FASA's local side is l' = l * sigmoid(l); without it l' = l.
        ffn: 'conv', or 'mlp' for no convolution in the feed-forward networks but a stage's strided one, see `FATBlock`.
        use_checkpoint: activation checkpointing of every block.
        global_pool: 'avg', or '' to leave the map unpooled, with num_classes 0.
        distilled: a second head, `head_dist`, for a teacher to train, as LeViT has one. The logits are the mean of both;
            in training, after `set_distilled_training()`, they come as a pair.

    Shapes: (B, in_chans, H, W) -> (B, num_classes); H and W at least 32, need not be equal nor multiples of 32.

    Raises:
        ValueError: per-stage lists of different lengths, or a value a layer refuses.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (32, 80, 160, 256),
        depths: Sequence[int] = (2, 2, 6, 2),
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        num_heads: Sequence[int] = (2, 5, 10, 16),
        window_sizes: Sequence[int] = (8, 4, 2, 1),
        mlp_kernel_sizes: Sequence[int] = (5, 5, 5, 5),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        interaction: str = "released",
        downsampling: str = "fine_grained",
        cpe: bool = True,
        self_modulation: bool = True,
        ffn: str = "conv",
        use_checkpoint: bool = False,
        global_pool: str = "avg",
        distilled: bool = False,
    ):
        super().__init__()
        per_stage = dict(
            embed_dims=embed_dims, depths=depths, kernel_sizes=kernel_sizes, num_heads=num_heads,
            window_sizes=window_sizes, mlp_kernel_sizes=mlp_kernel_sizes, mlp_ratios=mlp_ratios,
        )  # fmt: skip
        for name, values in per_stage.items():
            if len(values) != len(embed_dims):
                raise ValueError(f"{name} has {len(values)} values for {len(embed_dims)} stages")
        num_stages = len(embed_dims)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.feature_info = [
            dict(num_chs=dim, reduction=4 * 2**i, module=f"layers.{i}") for i, dim in enumerate(embed_dims)
        ]
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        self.patch_embed = ConvStem(in_chans, embed_dims[0])
        self.layers = nn.ModuleList(
            FATStage(
                embed_dims[i],
                embed_dims[min(i + 1, num_stages - 1)],
                drop_path_rates[i],
                downsample=i < num_stages - 1,
                num_heads=num_heads[i],
                kernel_size=kernel_sizes[i],
                window_size=window_sizes[i],
                mlp_ratio=mlp_ratios[i],
                mlp_kernel_size=mlp_kernel_sizes[i],
                interaction=interaction,
                downsampling=downsampling,
                cpe=cpe,
                self_modulation=self_modulation,
                ffn=ffn,
            )
            for i in range(num_stages)
        )
        self.norm0, self.norm1, self.norm2, self.norm3 = (nn.Identity() for _ in range(4))  # see add_feature_norms
        self.norm = LayerNorm(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self.distilled, self.distilled_training = distilled, False
        self.reset_classifier(num_classes, global_pool)
        self.set_grad_checkpointing(use_checkpoint)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)  # (B, C_0, H/4, W/4)
        for stage in self.layers:
            x = stage(x)
        return self.norm(x)  # (B, C_3, H/32, W/32)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        if self.global_pool == "avg":
            x = x.mean((2, 3))  # (B, C_3)
        x = self.head_drop(x)
        if pre_logits:
            return x
        if self.num_classes and not self.global_pool:  # after reset_classifier(0, "") and reset_classifier(10)
            raise ValueError("global_pool '' leaves a map, which the head cannot take; set num_classes to 0")
        if self.head_dist is None:
            return self.head(x)
        logits, taught = self.head(x), self.head_dist(x)
        if self.distilled_training and self.training and not torch.jit.is_scripting():
            return logits, taught
        return (logits + taught) / 2

    # Below: timm's model interface.

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, list[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[list[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]:
        """Feature maps of the stages, at strides 4, 8, 16, 32.

        A stage's feature is Y of its last block (after FASA, before the ConvFFN that makes the map smaller); the last
        stage, which does not make it smaller, gives its output. `norm` applies the final norm to that last one. After
        `add_feature_norms` each feature goes through its stage's own norm, whatever `norm` says.
        """
        if output_fmt != "NCHW":
            # as TorchScript knows it
            raise ValueError("output_fmt is '{}'; FAT's features are NCHW".format(output_fmt))
        take_indices, max_index = feature_take_indices(len(self.layers), indices)
        intermediates = []
        x = self.patch_embed(x)
        last = len(self.layers) - 1
        if torch.jit.is_scripting() or not stop_early:
            stages = self.layers
        else:
            stages = self.layers[: max_index + 1]
        for i, stage in enumerate(stages):
            x, feature = stage.forward_with_feature(x)
            if i in take_indices:
                if norm and not stage.downsample:
                    feature = self.norm(feature)
                intermediates.append(self._feature_norm(i, feature))
        if intermediates_only:
            return intermediates
        return (self.norm(x) if max_index == last or not stop_early else x), intermediates

    def add_feature_norms(self) -> None:
        """The dense form (the released segmentation code's): a norm for each stage's feature, `norm0` .. `norm3`.

        They take the place of the final norm, which `prune_intermediate_layers` then leaves out.
        """
        other = next(self.parameters())  # whose device and dtype the norms have
        for i, info in enumerate(self.feature_info):
            setattr(self, f"norm{i}", LayerNorm(info["num_chs"]).to(other.device, other.dtype))

    def _feature_norm(self, stage: int, feature: torch.Tensor) -> torch.Tensor:
        # TorchScript finds no module by a name that is computed
        if stage == 0:
            return self.norm0(feature)
        if stage == 1:
            return self.norm1(feature)
        if stage == 2:
            return self.norm2(feature)
        return self.norm3(feature)

    def prune_intermediate_layers(
        self, indices: Union[int, Sequence[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ):
        take_indices, max_index = feature_take_indices(len(self.layers), indices)
        shorter = max_index + 1 < len(self.layers)
        self.layers = self.layers[: max_index + 1]
        if shorter:
            self.layers[-1].prune()
        for i in range(len(self.feature_info)):
            if i not in take_indices:
                setattr(self, f"norm{i}", nn.Identity())
        if prune_norm or shorter:  # the norm is of the last stage's channels
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices

    def get_classifier(self) -> Union[nn.Module, tuple[nn.Module, nn.Module]]:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        if global_pool is not None:
            if global_pool not in ("avg", ""):
                raise ValueError(f"global_pool is {global_pool!r}; FAT knows 'avg' and ''")
            if num_classes and not global_pool:
                raise ValueError("global_pool '' leaves a map, which the head cannot take; set num_classes to 0")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = self._new_head() if num_classes else nn.Identity()
        self.head_dist = self._new_head() if num_classes and self.distilled else None
        for head in filter(None, [num_classes and self.head, self.head_dist]):
            trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            head.train(self.training)

    def _new_head(self) -> nn.Linear:
        other = next(self.parameters())  # whose device and dtype the head has
        return nn.Linear(self.num_features, self.num_classes, device=other.device, dtype=other.dtype)

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        self.distilled_training = enable

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.layers:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        stages = r"^layers\.(\d+)" if coarse else r"^layers\.(\d+)\.blocks\.(\d+)"
        with_the_one_before = (
            99999,
        )  # norm0 is of the first stage's group, or of its last block's; norm of the last one's
        return dict(
            stem=r"^patch_embed",
            blocks=[(stages, None), (r"^norm(\d+)", with_the_one_before), (r"^norm\.", with_the_one_before)],
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set:
        return set()  # biases and norms are one-dimensional, which timm's parameter groups leave out already


class FATFeatures(FeatureGetterNet):
    """What `features_only=True` gives: the dense form, each stage's feature through a norm of its own.

    Its model, `.model`, has the keys and values of the backbone in the released segmentation code. The features
    without those norms are those of timm's own class, `features_only=True, feature_cls="getter"`.

    Shapes: (B, in_chans, H, W) -> a list of (B, C_i, ceil(H / 2^(i+2)), ceil(W / 2^(i+2))), for i in `out_indices`.
    """

    def __init__(self, model: FAT, *args: Any, **kwargs: Any):
        model.add_feature_norms()
        super().__init__(model, *args, **kwargs)


def _cfg(**kwargs):
    return dict(
        url="", num_classes=1000, input_size=(3, 224, 224), crop_pct=0.875, interpolation="bicubic",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), fixed_input_size=False, pool_size=(7, 7),
        first_conv="patch_embed.conv1.conv.0", classifier="head",
        paper_ids="arXiv:2306.00396", paper_name="Lightweight Vision Transformer with Bidirectional Interaction",
        **kwargs,
    )  # fmt: skip


default_cfgs = generate_default_cfgs(
    {f"{name}.untrained": _cfg() for name in ("fat_tiny", "fat_small", "fat_b0", "fat_b1", "fat_b2", "fat_b3")}
)


def _create_fat(
    variant: str, pretrained: bool = False, device: Optional[str] = None, dtype: Optional[torch.dtype] = None, **kwargs
) -> FAT:
    feature_cfg = dict(out_indices=(0, 1, 2, 3), feature_cls=FATFeatures)
    with contextlib.nullcontext() if device is None else torch.device(device):
        model = build_model_with_cfg(FAT, variant, pretrained, feature_cfg=feature_cfg, **kwargs)
    if dtype is not None:
        model.to(dtype)
    if kwargs.get("distilled"):
        model.pretrained_cfg["classifier"] = ("head", "head_dist")
    return model


@register_model
def fat_tiny(pretrained: bool = False, **kwargs) -> FAT:
    """4 blocks, 0.4 M parameters. Not in the paper's tables: for quick starts and tests."""
    args = dict(embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    return _create_fat("fat_tiny", pretrained, **{**args, **kwargs})


@register_model
def fat_small(pretrained: bool = False, **kwargs) -> FAT:
    """8 blocks, between fat_tiny and FAT-B0. Not in the paper's tables: for quick starts and tests."""
    args = dict(embed_dims=(32, 64, 128, 192), depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 12))
    return _create_fat("fat_small", pretrained, **{**args, **kwargs})


@register_model
def fat_b0(pretrained: bool = False, **kwargs) -> FAT:
    """FAT-B0: 4.5 M parameters, 0.7 GMACs of convolutions at 224 px, 77.6 % top-1 (paper)."""
    args = dict(embed_dims=(32, 80, 160, 256), depths=(2, 2, 6, 2), num_heads=(2, 5, 10, 16))
    return _create_fat("fat_b0", pretrained, **{**args, **kwargs})


@register_model
def fat_b1(pretrained: bool = False, **kwargs) -> FAT:
    """FAT-B1: 7.8 M parameters, 1.2 GMACs of convolutions at 224 px, 80.1 % top-1 (paper)."""
    args = dict(embed_dims=(48, 96, 192, 384), depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    return _create_fat("fat_b1", pretrained, **{**args, **kwargs})


@register_model
def fat_b2(pretrained: bool = False, **kwargs) -> FAT:
    """FAT-B2: 13.5 M parameters, 2.0 GMACs of convolutions at 224 px, 81.9 % top-1 (paper)."""
    args = dict(embed_dims=(64, 128, 256, 512), depths=(2, 2, 6, 2), num_heads=(2, 4, 8, 16))
    return _create_fat("fat_b2", pretrained, **{**args, **kwargs})


@register_model
def fat_b3(pretrained: bool = False, **kwargs) -> FAT:
    """FAT-B3: 29 M parameters, 4.4 GMACs of convolutions at 224 px, 83.6 % top-1 (paper)."""
    args = dict(embed_dims=(64, 128, 256, 512), depths=(4, 4, 16, 4), num_heads=(2, 4, 8, 16))
    return _create_fat("fat_b3", pretrained, **{**args, **kwargs})
