"""Image files to RGB, whatever their format and mode: nothing is guessed, and what cannot be read is an error."""

import contextlib
import io
import logging
import math
import os
import warnings
from functools import partial
from typing import BinaryIO, Callable, Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from .metadata import without_metadata

HAS_AVIF = "avif" in features.modules and features.check("avif")  # Pillow has it since 11.3
# Not EPS and the like, which run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", *(["AVIF"] if HAS_AVIF else []))
MAX_RATIO = 100  # of the sides; the short side becomes the model's, and the long one with it
MAX_PIXELS = (
    Image.MAX_IMAGE_PIXELS or math.inf
)  # 89 million, Pillow's limit for its warning; above it a file is taken for a bomb

logging.getLogger("PIL").addHandler(logging.NullHandler())  # or Python prints its errors, without a file's name


def decode_image(file: BinaryIO, exif: bool = True) -> Image.Image:
    """An image file's first frame as an RGB image.

    - Transparent pixels (RGBA, grey with alpha, palettes or colours marked as transparent) are laid over white.
    - 16-bit grey keeps its range: 0 .. 65535 becomes 0 .. 255.
    - CMYK, YCbCr, palettes, grey and black-and-white are converted by Pillow; colour profiles are not applied.
    - With `exif`, the image is turned as its EXIF orientation says.
    - Metadata that are damaged or too large (texts, colour profiles, EXIF) are left out, without a word.

    Raises:
        Exception: of Pillow's many kinds, if the file is damaged, no image, or of a mode without a known range.
    """
    return _despite_metadata(file, partial(_decode, exif=exif))


def open_image(file: BinaryIO) -> Image.Image:
    """An image file of which only the header is read.

    Raises:
        Exception: of Pillow's many kinds, if the file is no image, or a decompression bomb.
    """
    return _despite_metadata(file, _open)


def _despite_metadata(file: BinaryIO, read: Callable[[BinaryIO], Image.Image]) -> Image.Image:
    """What `read` makes of a file, if need be without the metadata at which Pillow ends.

    Pillow's limits on them hold, so that a bomb among the texts does not fill the memory.
    """
    with _without_warnings():
        try:
            return read(file)
        except (MemoryError, Image.DecompressionBombError):
            raise
        except Exception as error:  # Pillow's readers raise of many kinds at damaged files
            first = error
        file.seek(0)
        for bare in without_metadata(file.read()):
            with contextlib.suppress(Exception):
                return read(io.BytesIO(bare))
        raise first


def by_pillow(file: BinaryIO, exif: bool) -> Image.Image:
    """An image file's first frame in its own mode, turned as its EXIF orientation says.

    Raises:
        Exception: of Pillow's many kinds, if the file is damaged or no image.
    """
    return _despite_metadata(file, partial(_loaded, exif=exif))


def _loaded(file: BinaryIO, exif: bool) -> Image.Image:
    image = _open(file)
    with without_stderr() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    return _upright(image) if exif else image


def _decode(file: BinaryIO, exif: bool) -> Image.Image:
    image = _loaded(file, exif)
    if image.mode.startswith("I"):  # I;16, I;16B, and I, which Pillow makes of some 16-bit files
        image = _sixteen_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _open(file: BinaryIO) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        if not HAS_AVIF and file.read(12)[4:] in (b"ftypavif", b"ftypavis"):
            raise ValueError("AVIF, which this Pillow does not read; pip install 'pillow>=11.3'") from error
        raise
    require_usual_size(image.width, image.height)
    return image


def require_usual_size(width: int, height: int) -> None:
    """Raises DecompressionBombError: no image to train on has so many pixels, or is so long."""
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels, the limit is {MAX_PIXELS}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise Image.DecompressionBombError(f"{width} x {height} pixels, the sides' limit is {MAX_RATIO} to 1")


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of metadata, and does not name the file; what it cannot make pixels of it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """For C libraries (libtiff, OpenCV's libjpeg), which write there of what they go on with, without the file."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@_without_warnings()
def orientation_of(image: Image.Image) -> int:
    """What the EXIF data say, 1 (upright) .. 8; 0 if they are damaged, as then nobody knows."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 0


def frames_of(image: Image.Image) -> int:
    """How many pictures a file has, an animation or one of several pages, of which `decode_image` takes the first.

    1 for a JPEG, whose further ones are previews and depths of its camera, and for a file whose further ones are damaged.
    """
    try:
        with _without_warnings():
            return 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    except Exception:  # Pillow's readers raise of many kinds at damaged files
        return 1


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data say nothing of the pixels
        return image


def _sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not is_sixteen_bits(values):
        raise ValueError("32-bit pixels have no known range")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))  # 257 = 65535 / 255, rounded


def is_sixteen_bits(values: np.ndarray) -> bool:
    return values.min() >= 0 and values.max() <= 65535
