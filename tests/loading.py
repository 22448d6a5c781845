"""How tests augment, load and finish images."""

from dataclasses import replace

import torch

from data.batches import Finish
from data.loader import Loading
from data.transforms import Augmentation, train_transform

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
FINISH = Finish(MEAN, STD, torch.device("cpu"))
LOADING = Loading(FINISH, num_workers=0, prefetch=2, pin_memory=False)
AUGMENTATION = Augmentation(
    scale=(0.08, 1.0), ratio=(0.75, 1.33), hflip=0.5, color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", reprob=0.5,
    remode="pixel", recount=1,
)  # fmt: skip


def augmentation(img_size=32, interpolation="bicubic", exif=True, backend="pil", bands=3, **changes):
    """A transform of training with `AUGMENTATION`, but for the changes."""
    return train_transform(img_size, interpolation, MEAN, replace(AUGMENTATION, **changes), exif, backend, bands)
