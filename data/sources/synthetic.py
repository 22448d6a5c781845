"""Images of noise, for benchmarks and dry runs without a data set."""

from typing import Any, Callable, Union

import numpy as np
from PIL import Image

SIZE = 256  # side of an image, near the side to which ImageNet's are resized


class SyntheticSource:
    """`num_images` images of noise; image and label are functions of the index and the split.

    They are RGB images of Pillow's, or uint8 arrays (H, W, bands) of other numbers of bands.
    """

    def __init__(self, num_images: int, num_classes: int, split: str, bands: int = 3):
        self.bands = bands
        self.num_images = num_images
        self.classes = [str(label) for label in range(num_classes)]
        self.labels = np.arange(num_images) % num_classes
        self.split = split
        self.fingerprint = f"synthetic {split}"

    @classmethod
    def open(cls, split: str, num_classes: int, num_images: int, decode: Callable[..., Any], **_) -> "SyntheticSource":
        return cls(num_images, num_classes or 1000, split, getattr(decode, "bands", 3))

    def __len__(self) -> int:
        return self.num_images

    def name(self, index: int) -> str:
        return f"{self.fingerprint} {index}"

    def key(self, index: int) -> str:
        return str(index)

    def load(self, index: int) -> tuple[Union[Image.Image, np.ndarray], int]:
        rng = np.random.default_rng([index, self.split == "train"])
        pixels = rng.integers(0, 256, (SIZE, SIZE, self.bands), dtype=np.uint8)
        return Image.fromarray(pixels) if self.bands == 3 else pixels, int(self.labels[index])
