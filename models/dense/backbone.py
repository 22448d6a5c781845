"""A timm model's maps at given strides, and what training asks of a backbone."""

import math
import re
from typing import Any, Callable, Mapping, Sequence

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format
from timm.models import group_parameters
from torch import nn

State = Mapping[str, torch.Tensor]
STRIDES = (4, 8, 16, 32)
FEATURE_NORM = re.compile(r"norm\d+\.")  # FAT's, which no classification checkpoint has


class DenseBackbone(nn.Module):
    """The maps of a timm model that knows `features_only`, at given strides.

    A map is the model's last one at that stride. Where the model has none there, as a ViT, whose maps are all at stride
    16, the last one at the nearest stride is resized.

    Args:
        name: timm's, such as 'fat_b0'.
        strides: of the maps, in px of the image.
        **model_args: of timm.create_model, such as in_chans, drop_path_rate; of a ViT `dynamic_img_size=True` and of a
            Swin `strict_img_size=False`, for images of any size.

    Attributes:
        channels: of the maps.

    Shapes: (B, in_chans, H, W) -> a list of (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])).

    Raises:
        RuntimeError: timm does not know the name, or the model no `features_only`.
    """

    def __init__(self, name: str, strides: Sequence[int] = STRIDES, **model_args: Any):
        super().__init__()
        self.name, self.strides, self.model_args = name, tuple(strides), model_args
        self.network = timm.create_model(name, features_only=True, **model_args)
        nearest = [self._last_map_near(stride) for stride in strides]
        indices = sorted(set(nearest))
        if indices != list(
            self.network.feature_info.out_indices
        ):  # a map that nobody takes costs time and has no gradient
            self.network = timm.create_model(name, features_only=True, out_indices=tuple(indices), **model_args)
        self._positions = [indices.index(index) for index in nearest]
        self.channels = [self.network.feature_info.channels()[position] for position in self._positions]
        self._channels_last = getattr(self.network, "output_fmt", Format.NCHW) == Format.NHWC

    def _last_map_near(self, stride: int) -> int:
        maps = self.network.feature_info.info
        distance = [abs(math.log2(one["reduction"] / stride)) for one in maps]
        return max(index for index in range(len(maps)) if distance[index] == min(distance))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = self.network(images)
        if self._channels_last:
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        height, width = images.shape[2:]
        return [
            at_size(maps[position], (math.ceil(height / stride), math.ceil(width / stride)))
            for position, stride in zip(self._positions, self.strides)
        ]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing, of the models that have it."""
        network = self.network if hasattr(self.network, "set_grad_checkpointing") else self.network.model
        network.set_grad_checkpointing(enable)

    def load_classification_weights(self, state: State) -> list[str]:
        """Loads the weights of a classification model of this name; its head and last norm have no place here.

        Returns:
            The names, in this module, of the tensors that such weights do not have, and that stay as they are: norms of
            FAT's features.

        Raises:
            ValueError: they are of another model; the first tensor that differs is named, this module unchanged.
        """
        taken, new = {}, []
        for name, value in self.network.state_dict().items():
            plain = plain_name(name, state)
            if plain in state and state[plain].shape == value.shape:
                taken[name] = state[plain]
            elif plain not in state and FEATURE_NORM.match(plain):
                new.append(f"network.{name}")
            else:
                shape = tuple(state[plain].shape) if plain in state else "missing"
                raise ValueError(f"the weights are not of {self.name}: {plain} is {shape}, not {tuple(value.shape)}")
        self.network.load_state_dict(taken, strict=False)
        return new

    def layers(self, coarse: bool = False) -> dict[str, int]:
        """The layer of each parameter, by its name here, from 0 on: by block, or with `coarse` by stage after the stem.

        Raises:
            AttributeError, AssertionError, NotImplementedError: timm's model does not say them.
        """
        model = getattr(self.network, "model", None)
        if not hasattr(model, "group_matcher"):  # timm has taken it apart
            with torch.random.fork_rng(devices=[]):
                model = timm.create_model(self.name, **self.model_args)
        known = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        names = [name for name, _ in self.network.named_parameters()]
        return {f"network.{name}": known[plain_name(name, known)] for name in names}


def plain_name(name: str, known: Mapping[str, Any]) -> str:
    """The name that a tensor of a `features_only` network has in timm's model itself.

    timm puts the model under `model`, or takes it apart: `stages.0` is then `stages_0`.
    """
    name = name.removeprefix("model.")
    first, _, rest = name.partition(".")
    apart = f"{'.'.join(first.rsplit('_', 1))}.{rest}"
    return apart if name not in known and apart in known else name


def backbone_of(model: nn.Module) -> DenseBackbone:
    """The backbone in a segmenter or detector."""
    return model.get_submodule(_path_of_backbone(model))


def _path_of_backbone(model: nn.Module) -> str:
    (path,) = (name for name, module in model.named_modules() if isinstance(module, DenseBackbone))
    return path


def group_matcher(model: nn.Module, coarse: bool) -> Callable[[str], tuple[float, ...]]:
    """timm's `group_matcher` for a model with a `DenseBackbone` in it: the backbone's layers, and all else after them."""
    path = _path_of_backbone(model)
    layers = {f"{path}.{name}": (float(layer),) for name, layer in backbone_of(model).layers(coarse).items()}
    return lambda name: layers.get(name, (math.inf,))


def at_size(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The map (B, C, h, w) as (B, C, *size)."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
