"""timm's RandAugment and AutoAugment on arrays, by OpenCV.

What is done to which image, how strongly, is timm's own draw: only the functions that its ops call are other ones. Of
these, all that replace levels one by one (and brightness) give Pillow's pixels to the bit; contrast, colour, sharpness
and translations round a level apart at most; shears and rotations interpolate by another cubic (OpenCV's a is -0.75,
Pillow's -1) and differ where an image has edges, and at the border of what is moved in, where OpenCV rounds places to
1/1024 of a pixel, a pixel may be filled in one and not in the other. tests/data/test_backends.py has the bounds.

Images here are uint8 (H, W, 3).
"""

import math
from typing import Sequence

import cv2
import numpy as np
from PIL import Image
from timm.data.auto_augment import AugmentOp, AutoAugment, RandAugment
from torchvision.transforms import ColorJitter

INTERPOLATIONS: dict[int, int] = {
    Image.Resampling.BILINEAR: cv2.INTER_LINEAR,
    Image.Resampling.BICUBIC: cv2.INTER_CUBIC,
}
LEVELS = np.arange(256)
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH
CUT = -0.499  # added before OpenCV rounds, as Pillow cuts off fractions


def on_arrays(policy):
    """Makes the ops of a timm policy take arrays; returns it.

    Raises:
        KeyError: it is neither RandAugment nor AutoAugment, or has an op that is not there for arrays.
    """
    if isinstance(policy, RandAugment):
        ops: list[AugmentOp] = list(policy.ops)
    elif isinstance(policy, AutoAugment):
        ops = [op for pair in policy.policy for op in pair]
    else:
        raise KeyError(type(policy).__name__)
    for op in ops:
        op.aug_fn = OPS[op.name]
    return policy


class ArrayColorJitter:
    """torchvision's ColorJitter, without hue, for arrays: its draws, the functions from here."""

    def __init__(self, jitter: ColorJitter):
        self.jitter = jitter

    def __call__(self, image: np.ndarray) -> np.ndarray:
        jitter = self.jitter
        order, *factors, _ = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None)
        for number in order.tolist():
            if number < 3 and factors[number] is not None:
                image = (brightness, contrast, color)[number](image, factors[number])
        return image


# Level by level


def auto_contrast(image: np.ndarray, **_) -> np.ndarray:
    low, high = np.array([cv2.minMaxLoc(channel)[:2] for channel in cv2.split(image)]).T
    scale = 255 / np.maximum(high - low, 1)
    stretched = (LEVELS[:, None] * scale - low * scale).astype(int)
    return _replace(image, np.where(high > low, stretched, LEVELS[:, None]))


def equalize(image: np.ndarray, **_) -> np.ndarray:
    return _replace(image, np.stack([_equalized(image, channel) for channel in range(3)], axis=1))


def _equalized(image: np.ndarray, channel: int) -> np.ndarray:
    counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(int)
    occurring = counts[counts > 0]
    step = (occurring.sum() - occurring[-1]) // 255
    return (step // 2 + counts.cumsum() - counts) // step if step else LEVELS


def invert(image: np.ndarray, **_) -> np.ndarray:
    return cv2.bitwise_not(image)


def posterize(image: np.ndarray, bits_to_keep: int, **_) -> np.ndarray:
    return _replace(image, LEVELS & (0xFF << (8 - min(max(bits_to_keep, 0), 8))))


def solarize(image: np.ndarray, thresh: int, **_) -> np.ndarray:
    return _replace(image, np.where(LEVELS < thresh, LEVELS, 255 - LEVELS))


def solarize_add(image: np.ndarray, add: int, thresh: int = 128, **_) -> np.ndarray:
    return _replace(image, np.where(LEVELS < thresh, LEVELS + add, LEVELS))


def brightness(image: np.ndarray, factor: float, **_) -> np.ndarray:
    return _replace(image, _away_from(0, factor))


def contrast(image: np.ndarray, factor: float, **_) -> np.ndarray:
    return _replace(image, _away_from(int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5), factor))


def _away_from(level: int, factor: float) -> np.ndarray:
    """All levels blended with one, or drawn away from it, in Pillow's arithmetic."""
    return np.float32(level) + np.float32(factor) * (LEVELS - level).astype(np.float32)


def _replace(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Each level by another one, (256,), or (256, 3) by channel."""
    table = np.clip(levels, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table if table.ndim == 1 else table[None])


# With a second image


def color(image: np.ndarray, factor: float, **_) -> np.ndarray:
    return _blend(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), image, factor)


def sharpness(image: np.ndarray, factor: float, **_) -> np.ndarray:
    smooth = cv2.filter2D(image, -1, SMOOTH)
    smooth[[0, -1]], smooth[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return _blend(smooth, image, factor)


def _blend(degenerate: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(image, factor, degenerate, 1 - factor, CUT)


# Geometry


def rotate(image: np.ndarray, degrees: float, *, fillcolor: Sequence[int], resample: int) -> np.ndarray:
    height, width = image.shape[:2]
    angle = -math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    shift_x = width / 2 - cos * width / 2 - sin * height / 2
    shift_y = height / 2 + sin * width / 2 - cos * height / 2
    return _affine(image, (cos, sin, shift_x, -sin, cos, shift_y), fillcolor, resample)


def shear_x(image: np.ndarray, factor: float, *, fillcolor: Sequence[int], resample: int) -> np.ndarray:
    return _affine(image, (1, factor, 0, 0, 1, 0), fillcolor, resample)


def shear_y(image: np.ndarray, factor: float, *, fillcolor: Sequence[int], resample: int) -> np.ndarray:
    return _affine(image, (1, 0, 0, factor, 1, 0), fillcolor, resample)


def _affine(image: np.ndarray, matrix: Sequence[float], fill: Sequence[int], resample: int) -> np.ndarray:
    """Pillow's affine transform: `matrix` leads from a new pixel to its place in the image; pixels from outside get `fill`."""
    a, b, c, d, e, f = matrix
    # Pillow's is for the pixels' centres
    by_index = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    size = image.shape[1::-1]
    moved = cv2.warpAffine(
        image, by_index, size, flags=INTERPOLATIONS[resample] | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    everywhere = np.full(image.shape[:2], 255, np.uint8)
    inside = cv2.warpAffine(everywhere, by_index, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderValue=0)
    return cv2.copyTo(moved, inside, _filled(image, fill))


def translate_x(image: np.ndarray, pct: float, *, fillcolor: Sequence[int], resample: int) -> np.ndarray:
    width = image.shape[1]
    weights, start, stop, source = _shift(pct * width, width, resample)
    wider = cv2.copyMakeBorder(image, 0, 0, 1, 1, cv2.BORDER_REPLICATE)
    moved = cv2.filter2D(wider, -1, weights[None], None, (1, 0), CUT, cv2.BORDER_REPLICATE)
    result = _filled(image, fillcolor)
    result[:, start:stop] = moved[:, source : source + stop - start]
    return result


def translate_y(image: np.ndarray, pct: float, *, fillcolor: Sequence[int], resample: int) -> np.ndarray:
    height = image.shape[0]
    weights, start, stop, source = _shift(pct * height, height, resample)
    higher = cv2.copyMakeBorder(image, 1, 1, 0, 0, cv2.BORDER_REPLICATE)
    moved = cv2.filter2D(higher, -1, weights[:, None], None, (0, 1), CUT, cv2.BORDER_REPLICATE)
    result = _filled(image, fillcolor)
    result[start:stop] = moved[source : source + stop - start]
    return result


def _shift(pixels: float, side: int, resample: int) -> tuple[np.ndarray, int, int, int]:
    """How a side is moved: weights of the neighbours -1 .. 2, the new pixels that come from inside, start and stop, and
    where the first of them comes from in the image with a border of 1.
    """
    whole = math.floor(pixels)
    t = pixels - whole
    if resample == Image.Resampling.BICUBIC:  # Pillow's, with a = -1
        weights = [-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, -(t**2) + t**3]
    else:
        weights = [0, 1 - t, t, 0]
    start, stop = (min(max(math.ceil(edge - pixels - 0.5), 0), side) for edge in (0, side))
    return np.array(weights, np.float32), start, max(start, stop), start + whole + 1


def _filled(image: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.rectangle(np.empty_like(image), (0, 0), (width, height), tuple(fill), cv2.FILLED)


OPS = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Rotate": rotate,
    "Posterize": posterize,
    "PosterizeIncreasing": posterize,
    "PosterizeOriginal": posterize,
    "Solarize": solarize,
    "SolarizeIncreasing": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "ColorIncreasing": color,
    "Contrast": contrast,
    "ContrastIncreasing": contrast,
    "Brightness": brightness,
    "BrightnessIncreasing": brightness,
    "Sharpness": sharpness,
    "SharpnessIncreasing": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateXRel": translate_x,
    "TranslateYRel": translate_y,
}
