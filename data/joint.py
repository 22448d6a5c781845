"""Transforms of torchvision.transforms.v2 for tasks whose targets lie on the image: masks, boxes, key points.

v2 draws from torch's global generator, which is seeded for each image, so that these draws are functions of (seed, epoch,
image) as those of `data.transforms` are.
"""

from functools import partial
from typing import Any, BinaryIO, Callable

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from utils.device import map_tensors

from .batches import Picture
from .decode import decode_image
from .sample import Sample


class JointTransform:
    """Moves an image and its target together.

    Args:
        transform: of torchvision.transforms.v2: (image, target) -> the same, with an image of uint8.
        on_image: (the source's target, (height, width)) -> the target as v2 knows it: tv_tensors.Mask,
            tv_tensors.BoundingBoxes and so on, at any depth. A DataError of it is one of the image.
        exif: see `decode_image`.
    """

    def __init__(
        self,
        transform: Callable[[Any, Any], tuple[torch.Tensor, Any]],
        on_image: Callable[[Any, tuple[int, int]], Any],
        exif: bool = True,
    ):
        self.transform = transform
        self.on_image = on_image
        self.decode: Callable[[BinaryIO], Any] = partial(decode_image, exif=exif)

    def __call__(self, sample: Sample) -> Sample:
        """An RGB image of Pillow's and its target -> a `Picture` and the moved target, of plain tensors."""
        image: Image.Image = sample.image
        target = self.on_image(sample.target, (image.height, image.width))
        pixels, target = self.transform(tv_tensors.Image(F.pil_to_tensor(image)), target)
        pixels = pixels.as_subclass(torch.Tensor).permute(1, 2, 0).contiguous()
        # plain ones: what sends batches shares their memory, and copies that of others
        return sample._replace(image=Picture(pixels.numpy()), target=map_tensors(target, _plain))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(torch.Tensor)
