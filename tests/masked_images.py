"""A small data set for segmentation: discs and squares on a noisy ground, with their masks."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "disc", "square")
COLOURS = np.array([(90, 90, 90), (220, 60, 40), (40, 80, 220)])


def masked_image(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) of a size of its own, and its labels (H, W), uint8."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(56, 90, 2)
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    for label in (1, 2):
        middle, radius = rng.integers(18, 40, 2), rng.integers(9, 15)
        distance = np.abs(y - middle[0]), np.abs(x - middle[1])
        inside = np.hypot(*distance) < radius if label == 1 else np.maximum(*distance) < radius
        labels[inside] = label
    pixels = COLOURS[labels] + rng.normal(0, 20, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8), labels


def write_masked_images(root: Path, splits: tuple[str, str] = ("train", "val"), first: int = 0) -> Path:
    """12 and 5 images with masks as the layout `masks` has them, and classes.txt; `first` is the masks' value of label 0."""
    for split, numbers in zip(splits, (range(12), range(100, 105))):
        folders = [root / kind / split for kind in ("images", "annotations")]
        for folder in folders:
            folder.mkdir(parents=True)
        for number in numbers:
            pixels, labels = masked_image(number)
            Image.fromarray(pixels).save(folders[0] / f"{number:03d}.png")
            Image.fromarray(labels + np.uint8(first)).save(folders[1] / f"{number:03d}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
