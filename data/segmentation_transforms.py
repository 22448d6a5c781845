"""What is done to an image and its mask before a segmentation model sees them.

The steps of training are those of mmseg's recipes for ADE20K, by torchvision.transforms.v2: resized by a random factor, cropped
so that no class fills the crop, mirrored, its colours changed, padded. They draw from torch's generator, see `data.joint`.
"""

from dataclasses import dataclass
from typing import Sequence

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from utils.image_size import Size, height_and_width

from .masks import IGNORED

TRIES = 10  # crops among which one is looked for in which no class has too much
CHANGE = dict(brightness=32 / 255, contrast=0.5, saturation=0.5, hue=0.1)  # as mmseg's 32 of 255, 0.5 .. 1.5, 18 of 180


@dataclass(frozen=True)
class SegmentationAugmentation:
    """What is done at random to a training image and its mask."""

    crop: Size
    scale: tuple[int, int]  # longer and shorter side into which the image is to fit, at factor 1
    ratio_range: tuple[float, float]  # of the factor
    cat_max_ratio: float  # largest share of a class among a crop's pixels; 1: any
    hflip: float  # probability
    photometric: bool  # whether colours are changed
    mean: Sequence[float]  # the colour of what is padded, so that it is 0 when it is normalised
    interpolation: str = "bilinear"


def fitted_size(height: int, width: int, scale: Sequence[float]) -> tuple[int, int]:
    """Height and width of an image, its ratio kept, that just fits into a longer and a shorter side."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


class AugmentMasked:
    """(image (3, H, W) uint8, mask (H, W)) -> the same of the crop's size."""

    def __init__(self, settings: SegmentationAugmentation):
        self.settings = settings
        self.mode = InterpolationMode(settings.interpolation)
        self.flip = v2.RandomHorizontalFlip(settings.hflip)
        self.distort = photometric_distortion() if settings.photometric else v2.Identity()
        self.colour = [round(255 * level) for level in settings.mean]

    def __call__(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self.resize(image, mask)
        image, mask = self.flip(*self.crop(image, mask))
        return self.pad(self.distort(image), mask)

    def resize(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        low, high = self.settings.ratio_range
        factor = low + (high - low) * torch.rand(()).item()
        height, width = mask.shape
        size = list(fitted_size(height, width, [side * factor for side in self.settings.scale]))
        resized = F.resize(image, size, self.mode, antialias=True)
        return resized, F.resize(mask, size, InterpolationMode.NEAREST_EXACT)

    def crop(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """The first of `TRIES` random places at which no class has too much, else the last of them."""
        height, width = (min(pair) for pair in zip(height_and_width(self.settings.crop), mask.shape))
        for _ in range(TRIES):
            top = int(torch.randint(mask.shape[0] - height + 1, ()))
            left = int(torch.randint(mask.shape[1] - width + 1, ()))
            part = F.crop(mask, top, left, height, width)
            if self.settings.cat_max_ratio >= 1 or is_mixed(part, self.settings.cat_max_ratio):
                break
        return F.crop(image, top, left, height, width), part

    def pad(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[torch.Tensor, torch.Tensor]:
        """On the right and below, with the mean colour and `IGNORED`."""
        height, width = height_and_width(self.settings.crop)
        missing = [0, 0, width - mask.shape[1], height - mask.shape[0]]
        if not any(missing):
            return image, mask
        return F.pad(image, missing, fill=self.colour), F.pad(mask, missing, fill=IGNORED)


def is_mixed(labels: torch.Tensor, most: float) -> bool:
    """Whether several classes are there, each with less than such a share; ignored pixels do not count."""
    counts = torch.bincount(labels[labels != IGNORED].long())
    return int((counts > 0).sum()) > 1 and float(counts.max() / counts.sum()) < most


def photometric_distortion() -> v2.Transform:
    """Brightness, contrast, saturation and hue, each for half of the images; contrast before or after the other two.

    Brightness is multiplied, where mmseg adds; channels are not exchanged, as v2.RandomPhotometricDistort would.
    """
    brightness, contrast, saturation, hue = (
        v2.RandomApply([v2.ColorJitter(**{name: strength})], p=0.5) for name, strength in CHANGE.items()
    )
    colours = [saturation, hue]
    orders = [v2.Compose([contrast, *colours]), v2.Compose([*colours, contrast])]
    return v2.Compose([brightness, v2.RandomChoice(orders)])


def unchanged(image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Of evaluation, which resizes images on the device and compares with the mask as it is."""
    return image, mask
