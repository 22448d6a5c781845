"""The transforms of `data.transforms` for images of any number of bands: timm's and torchvision's steps on tensors.

Resized images are not rounded, as 8-bit photographs are between two steps; a batch of them is float32.
"""

from typing import Any, Callable, Sequence

import numpy as np
import torch
from timm.data.transforms import CenterCropOrPad
from torchvision.transforms import FiveCrop

from utils.image_size import Size, height_and_width

from .bands import scaled
from .batches import Picture


class Resized:
    """The first step: an array of `data.bands.BandReader` -> tensor (bands, height, width), float32.

    Args:
        resize: of a tensor. Pixels that were integers stay between 0 and 1, as a bicubic filter goes beyond.
    """

    def __init__(self, resize: Callable[[torch.Tensor], torch.Tensor]):
        self.resize = resize

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        resized = self.resize(scaled(pixels))
        return resized if pixels.dtype.kind == "f" else resized.clamp(0, 1)


class Border:
    """timm's CenterCropOrPad with a border of a level for each band: (bands, h, w) -> (bands, *size)."""

    def __init__(self, size: Size, levels: Sequence[float]):
        self.size = height_and_width(size)
        self.crop_or_pad = CenterCropOrPad(list(self.size), fill=0)
        self.levels = torch.tensor(levels, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        inside = self.crop_or_pad(torch.ones(1, *image.shape[1:])) > 0
        return torch.where(inside, self.crop_or_pad(image), self.levels)


def to_array(image: torch.Tensor) -> np.ndarray:
    """(bands, H, W) -> (H, W, bands)."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def eval_steps(
    steps: Sequence[Any], size: Size, crops: int, border: Sequence[float]
) -> dict[str, Callable[[Any], Any]]:
    """The steps of `eval_transform`.

    Args:
        steps: timm's resizing and crop.
        border: the levels around an image of crop mode 'border'; none for another mode.
    """
    resize, crop, *_ = steps
    if crops == 5:
        return {"resize": Resized(resize), "crop": FiveCrop(height_and_width(size)), "views": _views}
    placed = Border(size, border) if border else crop
    return {"resize": Resized(resize), "crop": placed, "to array": to_array, "picture": Picture}


def _views(images: Sequence[torch.Tensor]) -> tuple[Picture, ...]:
    return tuple(Picture(to_array(image)) for image in images)
