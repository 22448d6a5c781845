"""The convolutions that heads are made of, as OpenMMLab's code initialises them."""

from typing import Iterator

from torch import nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """A convolution without bias, BatchNorm, ReLU: (B, in, H, W) -> (B, out, H, W)."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class Classifier(nn.Sequential):
    """Dropout of whole channels and a 1x1 convolution: (B, in_channels, H, W) -> (B, num_classes, H, W)."""

    def __init__(self, in_channels: int, num_classes: int, drop_rate: float):
        super().__init__(nn.Dropout2d(drop_rate), nn.Conv2d(in_channels, num_classes, 1))
        nn.init.normal_(self[1].weight, std=0.01)
        nn.init.zeros_(self[1].bias)


def initialise_xavier(convolutions: Iterator[nn.Module]) -> None:
    """Weights by Xavier's uniform rule and biases 0, as of OpenMMLab's FPN."""
    for module in convolutions:
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
