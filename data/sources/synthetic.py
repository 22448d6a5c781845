"""Images of noise, for benchmarks and dry runs without a data set."""

import numpy as np
from PIL import Image

SIZE = 256  # side of an image, near the side to which ImageNet's are resized


class SyntheticSource:
    """`num_images` images of noise; image and label are functions of the index and the split."""

    def __init__(self, num_images: int, num_classes: int, split: str):
        self.num_images = num_images
        self.classes = [str(label) for label in range(num_classes)]
        self.labels = np.arange(num_images) % num_classes
        self.split = split
        self.fingerprint = f"synthetic {split}"

    @classmethod
    def open(cls, split: str, num_classes: int, num_images: int, **_) -> "SyntheticSource":
        return cls(num_images, num_classes or 1000, split)

    def __len__(self) -> int:
        return self.num_images

    def name(self, index: int) -> str:
        return f"{self.fingerprint} {index}"

    def key(self, index: int) -> str:
        return str(index)

    def load(self, index: int) -> tuple[Image.Image, int]:
        rng = np.random.default_rng([index, self.split == "train"])
        return Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)), int(self.labels[index])
