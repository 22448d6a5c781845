"""A source of images with the transform that makes them tensors."""

from typing import Callable, NamedTuple

import torch
from torch.utils.data import Dataset

from utils.rng import seed_all


class SeededIndex(NamedTuple):
    """Which image, and the seed of its augmentation."""

    index: int
    seed: int


class ImageDataset(Dataset):
    """(image tensor (3, H, W), label) of a source.

    Asked for a `SeededIndex`, it seeds all generators before the transform, so that an augmented image depends on
    nothing but its index and seed. Asked for a plain index, it is for transforms without randomness.
    """

    def __init__(self, source, transform: Callable):
        self.source = source
        self.transform = transform
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key) -> tuple[torch.Tensor, int]:
        if isinstance(key, SeededIndex):
            seed_all(key.seed)
            key = key.index
        image, label = self.source.load(key)
        return self.transform(image), label
