"""Images that are no RGB photographs, DATA.IN_CHANS: grey ones and those of several bands, with their full range.

An array keeps its type until it is resized: integers are divided by the largest of their type (255, 65535), floats are
taken as they are.
"""

import contextlib
import logging
from typing import BinaryIO, NoReturn

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from utils.cli import importing

from .decode import by_pillow, is_sixteen_bits, require_usual_size, without_stderr
from .image_files import is_image
from .metadata import TIFFS

NUMPY = b"\x93NUMPY"
ARRAYS = ".npy"
RANGES = {"uint8": 255.0, "uint16": 65535.0}  # the value that becomes 1, by type

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # it does not name the file


class WrongBands(ValueError):
    """An image with another number of bands than DATA.IN_CHANS."""

    def __init__(self, there: int, wanted: int, shape: tuple[int, ...]):
        self.there = there
        super().__init__(
            f"has {there} band{'s' * (there > 1)} ({' x '.join(map(str, shape))}), but DATA.IN_CHANS is {wanted}"
        )


class BandReader:
    """Open file -> array (H, W, bands) of uint8, uint16 or float32.

    - PNG, JPEG and what else Pillow reads: its bands, an alpha channel among them; palettes are their colours.
    - TIFF: the samples of a page, by Pillow or, where there are several, by tifffile; a file of several pages of one sample
      each has them as bands.
    - NumPy's .npy: (H, W) or (H, W, bands).

    Args:
        bands: that each image must have.
        exif: whether what Pillow reads is turned upright as its EXIF orientation says.

    Raises:
        WrongBands: when it is called: there are more bands, or fewer.
        ValueError: pixels of a type without a known range, or that are no numbers.
        ConfigError: tifffile is not installed.
        Exception: of the readers' many kinds, if the file is damaged or no image.
    """

    def __init__(self, bands: int, exif: bool = True):
        self.bands, self.exif = bands, exif

    def is_image(self, path: str) -> bool:
        """As `data.image_files.is_image`; arrays are images too."""
        return is_image(path) or (path.lower().endswith(ARRAYS) and is_image(f"{path}.png"))

    def __call__(self, file: BinaryIO) -> np.ndarray:
        start = file.read(len(NUMPY))
        file.seek(0)
        if start == NUMPY:
            pixels = np.load(file, allow_pickle=False)
        elif start[:4] in TIFFS:
            pixels = self._tiff(file)
        else:
            pixels = self._by_pillow(file)
        return self._checked(pixels)

    def frames(self, file: BinaryIO) -> int:
        """How many pictures a file has: one, as pages are bands."""
        return 1

    def _checked(self, pixels: np.ndarray) -> np.ndarray:
        shape = pixels.shape
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3:
            raise ValueError(
                f"its array has {pixels.ndim} dimensions ({' x '.join(map(str, shape))}), not H x W x bands"
            )
        if pixels.shape[2] != self.bands:
            raise WrongBands(pixels.shape[2], self.bands, shape)
        require_usual_size(pixels.shape[1], pixels.shape[0])
        if pixels.dtype.name in RANGES:
            return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        if pixels.dtype.kind != "f":
            _no_range(pixels.dtype.name)
        pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise ValueError("it holds values that are infinite or no numbers; fill them")
        return pixels

    def _by_pillow(self, file: BinaryIO) -> np.ndarray:
        return bands_of(by_pillow(file, self.exif))

    def _tiff(self, file: BinaryIO) -> np.ndarray:
        if self.bands == 1:
            with contextlib.suppress(UnidentifiedImageError):  # of several bands, whose number tifffile says
                return self._by_pillow(file)
            file.seek(0)
        with importing("tifffile"):
            import tifffile
        with without_stderr(), tifffile.TiffFile(file) as tiff:
            first = tiff.pages.first
            require_usual_size(first.imagewidth, first.imagelength)
            if "S" in first.axes:
                return np.moveaxis(first.asarray(), first.axes.index("S"), -1)
            bands = [page for page in tiff.pages if page.shape == first.shape]
            return np.stack([page.asarray() for page in (bands if self.bands > 1 else bands[:1])], axis=-1)


def bands_of(image: Image.Image) -> np.ndarray:
    """The pixels of an image of Pillow's: (H, W) or (H, W, bands)."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if not is_sixteen_bits(pixels):
            _no_range("32-bit")
        return pixels.astype(np.uint16)
    return np.asarray(image)


def _no_range(kind: str) -> NoReturn:
    raise ValueError(f"{kind} pixels have no known range; make them uint8, uint16 or floats")


def scaled(pixels: np.ndarray) -> torch.Tensor:
    """An array of `BandReader` -> (bands, H, W), float32: integers between 0 and 1, floats as they are."""
    values = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
    return values.div_(RANGES[pixels.dtype.name]) if pixels.dtype.name in RANGES else values
