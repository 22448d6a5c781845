"""The crop of a random resized crop, decoded from a file.

Everything about a file but its pixels is Pillow's to say: its format, size, mode, orientation and whether it is too
large. A plain 8-bit JPEG is decoded by another library with the same libjpeg-turbo underneath, to the same bits; every
other file is `decode_image`'s.
"""

import io
from typing import Any, BinaryIO, Callable, Optional, Sequence

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from .decode import decode_image, open_image, orientation_of, without_stderr

Box = tuple[int, int, int, int]  # top, left, height, width


class CropReader:
    """Open file, or RGB image -> its random crop, uint8 (height, width, 3).

    The crop's box is drawn before anything is decoded, from the size alone, as timm draws it.

    Args:
        scale, ratio: see timm's RandomResizedCropAndInterpolation.
        exif: see `decode_image`.
        decode: a whole JPEG file and a box -> the box's pixels, None if they cannot be had.
    """

    def __init__(
        self,
        scale: Sequence[float],
        ratio: Sequence[float],
        exif: bool,
        decode: Callable[[bytes, Box], Optional[np.ndarray]],
    ):
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.exif = exif
        self.decode = decode
        self.by_pillow = 0  # files that were not plain JPEGs, in this process

    def __call__(self, file: BinaryIO) -> np.ndarray:
        """Raises what `decode_image` raises."""
        data = file.read()
        image = open_image(io.BytesIO(data))
        if not self.is_plain(image, data):
            self.by_pillow += 1
            return self.crop(decode_image(io.BytesIO(data), self.exif))
        box = self.draw(*image.size)
        pixels = self.decode(data, box)
        if pixels is None or pixels.shape != (*box[2:], 3):
            return _cut(np.array(decode_image(io.BytesIO(data), self.exif)), box)  # or its error
        return pixels

    def crop(self, image: Any) -> np.ndarray:
        """The crop of an image that is in memory; what is a crop already stays as it is."""
        if isinstance(image, np.ndarray):
            return image
        return _cut(np.array(image), self.draw(*image.size))

    def draw(self, width: int, height: int) -> Box:
        nothing = torch.empty(1, 1, 1).expand(3, height, width)  # something of that size without its memory
        return RandomResizedCropAndInterpolation.get_params(nothing, self.scale, self.ratio)

    def is_plain(self, image: Image.Image, data: bytes) -> bool:
        """Whether a file, opened by Pillow, is a whole upright JPEG of 8-bit grey or colour.

        One that does not end as a JPEG does may be cut short: Pillow is to say whether it can be read.
        """
        whole = data[-2:] == b"\xff\xd9" or data[-64:].rstrip(b"\0")[-2:] == b"\xff\xd9"
        plain = image.format == "JPEG" and image.mode in ("L", "RGB") and whole
        return plain and not (self.exif and orientation_of(image) != 1)


def decode_cv2(data: bytes, box: Box) -> Optional[np.ndarray]:
    """A box of a JPEG file, by decoding all of it with OpenCV; None if it cannot be decoded or may be damaged."""
    with without_stderr():
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or is_filled_up(pixels):
        return None
    return cv2.cvtColor(_cut(pixels, box), cv2.COLOR_BGR2RGB)


def is_filled_up(pixels: np.ndarray) -> bool:
    """Whether pixels may be missing: libjpeg fills up with grey, to the last one. Pillow knows which of such files it must
    refuse, others do not.
    """
    return bool((pixels[-1, -1] == 128).all())


def _cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]
