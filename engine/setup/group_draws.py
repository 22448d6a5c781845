"""Draws of a group of images of which a micro-batch has only some: they are drawn for all, and those of its images are kept.

So mixup, drop path and dropout do the same to an image whichever micro-batch it is in, and whoever computes that.
"""

import contextlib
from typing import Any, Iterator, NamedTuple, Optional, Sequence

import numpy as np
import torch
from timm.data import Mixup
from timm.layers import DropPath
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from utils.rng import derive_seed


class Group(NamedTuple):
    """Images that draw together, of which a micro-batch has some."""

    seed: Sequence[int]  # what the draws are a function of, as `utils.rng.seed_all` takes it
    size: int  # images
    rows: Sequence[int]  # those that are here


class GroupDraws:
    """What a micro-batch draws that consists of parts of groups, one after the other.

    A layer's mask is drawn by the layer itself, for whole groups, in the forward pass. Where activation checkpointing asks for
    it again in the backward pass it is the same.
    """

    def __init__(self, groups: Sequence[Group]):
        self.groups = groups
        self.counts = [len(group.rows) for group in groups]
        self.generators: dict[tuple[int, torch.device], torch.Generator] = {}
        self.masks: dict[nn.Module, list[torch.Tensor]] = {}
        self.repeated: Optional[dict[nn.Module, int]] = None  # masks that were asked for again, in the backward pass

    def begin_backward(self) -> None:
        self.repeated = {}

    def mask(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What a dropout layer multiplies its input by: (V * B, ...) -> (V * B, ...) or (V * B, 1, ...), of V views of B images."""
        masks = self.masks.setdefault(layer, [])
        if self.repeated is not None:
            number = self.repeated.get(layer, 0)
            self.repeated[layer] = number + 1
            return masks[number % len(masks)]
        masks.append(
            torch.cat([self._draw(number, layer, x) for number in range(len(self.groups))], dim=1).flatten(0, 1)
        )
        return masks[-1]

    def _draw(self, number: int, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The mask of a group's images that are here: (V, n, ...)."""
        group = self.groups[number]
        views = len(x) // sum(self.counts)
        values = (1,) * (x.ndim - 1) if isinstance(layer, DropPath) else x.shape[1:]
        ones = x.new_ones(views * group.size, *values)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            ones = ones.to(
                memory_format=torch.channels_last
            )  # values are drawn in the order in which they lie in memory
        generator, key = default_generator(x.device), (number, x.device)
        if key not in self.generators:
            self.generators[key] = torch.Generator(x.device).manual_seed(derive_seed(*group.seed))
        before = generator.get_state()
        generator.set_state(self.generators[key].get_state())
        mask = layer.forward(ones)
        self.generators[key].set_state(generator.get_state())
        generator.set_state(before)
        return mask.unflatten(0, (views, group.size))[:, list(group.rows)]


_present: Optional[GroupDraws] = None  # of the micro-batch that is computed, if its images are no whole group


@contextlib.contextmanager
def drawing(groups: Sequence[Group]) -> Iterator[GroupDraws]:
    """While a micro-batch is computed: its images are these; of none, what is drawn is as it is drawn."""
    global _present
    draws = GroupDraws(groups)
    _present = draws if groups else None
    try:
        yield draws
    finally:
        _present = None


def default_generator(device: torch.device) -> torch.Generator:
    """The one that layers draw from."""
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def draw_by_groups(model: nn.Module) -> None:
    """Has the model's drop path and dropout draw for whole groups, within `drawing`. Other layers' draws are left alone."""
    for layer in model.modules():
        if isinstance(layer, (DropPath, _DropoutNd)) and not getattr(layer, "inplace", False):
            layer.register_forward_hook(_keep_own)


def _keep_own(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Optional[torch.Tensor]:
    rate: Any = getattr(layer, "drop_prob", getattr(layer, "p", 0))
    (x,) = inputs
    if _present is None or not layer.training or not rate or len(x) % sum(_present.counts):
        return None
    return x * _present.mask(layer, x)


def mixed(mixup: Mixup, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, H, W), which are changed, and targets (B,) or (B, classes) -> mixed ones, and (B, classes).

    A group of which only some are here has zeros in place of the others; image i of n is mixed with n - 1 - i, which is here.
    """
    if _present is None:
        return mixup(images, targets)
    results = []
    for group, some, labels in zip(_present.groups, images.split(_present.counts), targets.split(_present.counts)):
        rows = list(group.rows)
        everything, all_labels = (
            some.new_zeros(group.size, *some.shape[1:]),
            labels.new_zeros(group.size, *labels.shape[1:]),
        )
        everything[rows], all_labels[rows] = some, labels
        np.random.seed(derive_seed(*group.seed))
        everything, all_labels = mixup(everything, all_labels)
        some.copy_(everything[rows])
        results.append(all_labels[rows])
    return images, torch.cat(results)
