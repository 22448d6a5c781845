"""Parameters and multiply-accumulates of a model."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Complexity:
    """`conv_macs` counts convolutions only, as the paper's table does; `macs` all matrix products, attention too."""

    params: int
    conv_macs: int
    macs: int

    def __str__(self) -> str:
        return (
            f"{self.params / 1e6:.2f} M parameters, {self.conv_macs / 1e9:.3f} GMACs in convolutions "
            f"({self.macs / 1e9:.3f} with attention and linear layers)"
        )


def measure_complexity(model: nn.Module, image_shape: tuple[int, int, int]) -> Complexity:
    """Counts one forward pass of one image, `image_shape` = (channels, height, width), in evaluation mode."""
    was_training = model.training
    parameter = next(model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    model.train(was_training)
    flops = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    return Complexity(
        params=sum(p.numel() for p in model.parameters()),
        conv_macs=sum(count for operator, count in flops.items() if "conv" in operator) // 2,
        macs=sum(flops.values()) // 2,
    )
