"""Weights of images with some number of channels for a model of images with another one, as timm adapts them."""

from typing import Any, Mapping

import torch
from timm.models import adapt_input_conv, get_model_traits
from torch import nn

State = Mapping[str, torch.Tensor]


def first_convolutions(model: nn.Module) -> tuple[str, ...]:
    """The names of the weights that see an image's channels, as timm's models say it; empty if one does not."""
    pretrained_cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    named = get_model_traits(model).get("first_conv", pretrained_cfg.get("first_conv")) or ()
    return tuple(f"{name}.weight" for name in ([named] if isinstance(named, str) else named))


def adapted(model: nn.Module, weights: State, channels: int) -> tuple[State, str]:
    """The weights with the model's number of input channels, by `timm.models.adapt_input_conv`: for one channel the sum
    over those there are, for others these in turn, scaled so that the sum of a grey image stays.

    Args:
        weights: of all the model's names.
        channels: of the images that they were trained on.

    Returns:
        The weights, and what was done, in one line; '' if nothing.

    Raises:
        ValueError: they cannot be adapted.
    """
    expected, changed, note = model.state_dict(), {}, ""
    for key in first_convolutions(model):
        weight, shape = weights[key], expected[key].shape
        if weight.shape == shape:
            continue
        in_chans, rest = divmod(channels * shape[1], weight.shape[1])  # a stem may see several positions as channels
        if rest:
            raise ValueError(f"{key} is {tuple(weight.shape)}, not of images of {channels} channels")
        try:
            changed[key] = adapt_input_conv(in_chans, weight, base_chans=channels)
        except NotImplementedError as error:
            raise ValueError(f"{key} is of {channels} channels, and timm cannot adapt it") from error
        if changed[key].shape != shape:
            raise ValueError(f"{key} is {tuple(weight.shape)}, the model's {tuple(shape)}")
        note = f"first convolution ({key.removesuffix('.weight')}) adapted from {channels} to {in_chans} channels, as timm does"
    return {**weights, **changed}, note
