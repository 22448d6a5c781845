"""Masks: pictures whose pixels are numbers of classes."""

from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from utils.errors import DataError
from utils.files import open_regular

from .decode import open_image
from .sources.reading import OR_SKIP, printable, read_image

IGNORED = -1  # of a pixel that counts nowhere, in training as in evaluation
UNKNOWN = -2  # of a value that is no class'
LARGEST = 65535  # that a PNG can hold


def mask_values(file: BinaryIO) -> np.ndarray:
    """The numbers (H, W) of a mask's file: grey of 1, 8 or 16 bits, or the indices of a palette, whatever its colours.

    Raises:
        Exception: of Pillow's many kinds, if the file is damaged or no image; ValueError: it holds colours.
    """
    image = open_image(file)
    image.load()
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise ValueError(f"it holds colours, mode {image.mode}, where each pixel should be the number of a class")
    return np.asarray(image).astype(np.int64)


class MaskReader:
    """Reads a mask's file as labels: for `JointTransform`'s `on_image`.

    Args:
        num_classes: labels are 0 .. num_classes - 1.
        ignore: the value of pixels that are left out.
        reduce_zero_label: whether 0 is left out too, and 1 is the first class.
        exif: whether images are turned as their EXIF orientation says, for a message.
    """

    def __init__(self, num_classes: int, ignore: int, reduce_zero_label: bool, exif: bool = True):
        self.num_classes, self.exif = num_classes, exif
        first = int(reduce_zero_label)
        self.allowed = f"{first} .. {first + num_classes - 1}, left out: {'0 and ' * reduce_zero_label}{ignore}"
        self.labels = np.full(LARGEST + 1, UNKNOWN, np.int16)  # by value
        self.labels[first : first + num_classes] = np.arange(num_classes)
        if reduce_zero_label:
            self.labels[0] = IGNORED
        if ignore <= LARGEST:
            self.labels[ignore] = IGNORED

    def __call__(self, path: str, size: tuple[int, int]) -> Any:
        """The labels of the mask of an image of this height and width: a tv_tensors.Mask (H, W), int16.

        Raises:
            DataError: it cannot be read, has another size, or values that are no class'.
            OutputError: it cannot be read just now.
        """
        name = printable(path)
        remedy = f"give a mask whose pixels are numbers of classes{OR_SKIP}"
        values = read_image(name, lambda: open_regular(path), mask_values, remedy)
        if values.shape != tuple(size):
            turned = ", as before the image is turned by its EXIF orientation: try DATA.EXIF False"
            why = turned if self.exif and values.shape == tuple(size)[::-1] else ""
            raise DataError(
                name, f"is {values.shape[1]} x {values.shape[0]} px, its image {size[1]} x {size[0]}{why}",
                f"give a mask of the image's size{OR_SKIP}",
            )  # fmt: skip
        labels = self.labels[np.clip(values, 0, LARGEST)]
        unknown = (labels == UNKNOWN) | (values > LARGEST)
        if unknown.any():
            found, counts = np.unique(values[unknown], return_counts=True)
            shown = ", ".join(map(str, found[:5])) + (" and more" if len(found) > 5 else "")
            raise DataError(
                name,
                f"has ids beyond the {self.num_classes} classes ({self.allowed}): {shown}, {counts.sum()} px",
                f"check SEG.CLASSES, SEG.REDUCE_ZERO_LABEL and SEG.IGNORE{OR_SKIP}",
            )
        return tv_tensors.Mask(torch.from_numpy(labels))


def label_image(labels: np.ndarray, reduce_zero_label: bool = False) -> Image.Image:
    """Labels (H, W) as a picture that a mask's file is made of: 8 bits, or 16 where there are more classes."""
    values = labels.astype(np.int64) + int(reduce_zero_label)
    return Image.fromarray(values.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16))
