"""How tests augment, load and finish images."""

import torch

from data.batches import Finish
from data.transforms import train_transform

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
FINISH = Finish(MEAN, STD, torch.device("cpu"))
LOADING = dict(num_workers=0, prefetch=2, pin_memory=False)


def augmentation(**changes):
    settings = dict(
        img_size=32, interpolation="bicubic", scale=(0.08, 1.0), ratio=(0.75, 1.33), hflip=0.5, color_jitter=0.4,
        auto_augment_policy="rand-m9-mstd0.5-inc1", mean=MEAN, reprob=0.5, remode="pixel", recount=1,
    )  # fmt: skip
    return train_transform(**{**settings, **changes})
