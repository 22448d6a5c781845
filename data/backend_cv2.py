"""The steps of the training transform on arrays: OpenCV, and torch's resizing of uint8 images.

torch resizes as Pillow does, with the same antialiased filters; cv2.resize would leave out the smoothing.
"""

from typing import Any, Callable, Sequence, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter, InterpolationMode, RandomHorizontalFlip

from utils.errors import ConfigError

from .augment_cv2 import ArrayColorJitter, on_arrays


class Resize:
    """uint8 (h, w, 3) -> uint8 (*size, 3)."""

    def __init__(self, size: tuple[int, int], interpolation: str):
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: np.ndarray) -> np.ndarray:
        image = np.ascontiguousarray(image)
        if image.shape[:2] == self.size:
            return image
        planes = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # a view: channels last, as resized
        resized = F.interpolate(planes, self.size, mode=self.interpolation, antialias=True)
        return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


class Flip:
    """torchvision's RandomHorizontalFlip for arrays."""

    def __init__(self, probability: float):
        self.probability = probability

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return cv2.flip(image, 1) if torch.rand(1) < self.probability else image


def place_steps(
    crop: Callable[[Any], np.ndarray],
    resized_crop: RandomResizedCropAndInterpolation,
    flips: list[RandomHorizontalFlip],
) -> dict[str, Callable[[Any], np.ndarray]]:
    """timm's steps up to the flip, as others that do the same to arrays.

    Args:
        crop: what comes from a source -> its random crop.
        resized_crop, flips: timm's steps.
    """
    # the workers are the threads; in one of them it would hang, as the threads do not survive the fork
    cv2.setNumThreads(1)
    interpolation = cast(InterpolationMode, resized_crop.interpolation).value  # which the config has chosen
    return {
        "crop": crop,
        "resize": Resize(tuple(resized_crop.size), interpolation),
        **{"flip": Flip(flip.p) for flip in flips},
    }


def colour_steps(colours: Sequence[Any], policy: str) -> list[Callable[[np.ndarray], np.ndarray]]:
    """timm's augmentation steps for arrays; `policy` is the config's name of them, for messages.

    Raises:
        ConfigError: a step that this backend does not have.
    """
    try:
        return [
            ArrayColorJitter(colour) if isinstance(colour, ColorJitter) else on_arrays(colour) for colour in colours
        ]
    except KeyError as error:
        raise ConfigError(
            f"AUG.AUTO_AUGMENT is {policy!r}, which DATA.BACKEND cv2 does not have; use a 'rand' policy or one of v0, v0r, "
            "original, originalr, or DATA.BACKEND pil"
        ) from error
