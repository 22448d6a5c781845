"""Parameters and multiply-accumulates of a model."""

import contextlib
from dataclasses import dataclass
from typing import Iterator, Optional

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Complexity:
    """`conv_macs` counts convolutions only, as the paper's table does; `macs` all matrix products, attention too.

    Both are None where torch cannot count them, for the reason in `uncounted`.
    """

    params: int
    conv_macs: Optional[int]
    macs: Optional[int]
    uncounted: str = ""

    def __str__(self) -> str:
        if self.macs is None or self.conv_macs is None:
            return f"{self.params:,} parameters, MACs not counted ({self.uncounted})"
        return (
            f"{self.params:,} parameters, {self.conv_macs / 1e9:.3f} GMACs in convolutions "
            f"({self.macs / 1e9:.3f} with attention and linear layers)"
        )


def measure_complexity(model: nn.Module, image_shape: tuple[int, int, int]) -> Complexity:
    """Counts one forward pass of one image, `image_shape` = (channels, height, width), in evaluation mode.

    Raises:
        Exception: what the model raises at images of this shape, of whatever kind.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    params = sum(p.numel() for p in model.parameters())
    with evaluation(model):
        try:
            with FlopCounterMode(display=False) as counter:
                model(image)
        except Exception as error:
            model(image)  # raises too, unless it is the counting that fails
            return Complexity(params, None, None, " ".join(f"{type(error).__name__}: {error}".split())[:200])
    flops = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    return Complexity(
        params=params,
        conv_macs=sum(count for operator, count in flops.items() if "conv" in operator) // 2,
        macs=sum(flops.values()) // 2,
    )


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients, and afterwards as it was.

    The parameters are constants meanwhile: torch's counter hooks every input of a layer that needs a gradient, and cannot
    hook a parameter that is one (as a ViT's class token is of its blocks).
    """
    training = {module: module.training for module in model.modules()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)


def layer_macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """What mmcv's counter, which papers of dense prediction quote, gives for one image, in evaluation mode.

    It looks at layers, not at operators: a convolution counts with its bias, a BatchNorm twice and a ReLU once for each
    value. Attention, GELU, GroupNorm and resizing count nothing.
    """
    counted = []

    def count(layer: nn.Module, _: tuple, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            positions = output.numel() // layer.out_channels
            counted.append(layer.weight.numel() * positions + (output.numel() if layer.bias is not None else 0))
        else:
            counted.append(output.numel() * (2 if isinstance(layer, nn.BatchNorm2d) else 1))

    parameter = next(model.parameters())
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with evaluation(model):
            model(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return sum(counted)
