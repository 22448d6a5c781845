"""Image files to RGB, whatever their format and mode: nothing is guessed, and what cannot be read is an error."""

import warnings
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

HAS_AVIF = "avif" in features.modules and features.check("avif")  # Pillow has it since 11.3
# Not EPS and the like, which run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", *(["AVIF"] if HAS_AVIF else []))
MAX_RATIO = 100  # of the sides; the short side becomes the model's, and the long one with it
MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # 89 million, Pillow's limit for its warning; above it a file is taken for a bomb


def decode_image(file: BinaryIO, exif: bool = True) -> Image.Image:
    """An image file's first frame as an RGB image.

    - Transparent pixels (RGBA, grey with alpha, palettes or colours marked as transparent) are laid over white.
    - 16-bit grey keeps its range: 0 .. 65535 becomes 0 .. 255.
    - CMYK, YCbCr, palettes, grey and black-and-white are converted by Pillow; colour profiles are not applied.
    - With `exif`, the image is turned as its EXIF orientation says.

    Raises:
        Exception: of Pillow's many kinds, if the file is damaged, no image, or of a mode without a known range.
    """
    image = open_image(file)
    image.load()
    if exif:
        image = _upright(image)
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


def open_image(file: BinaryIO) -> Image.Image:
    """An image file of which only the header is read.

    Raises:
        Exception: of Pillow's many kinds, if the file is no image, or a decompression bomb.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            file.seek(0)
            if not HAS_AVIF and file.read(12)[4:] in (b"ftypavif", b"ftypavis"):
                raise ValueError("AVIF, which this Pillow does not read; pip install 'pillow>=11.3'") from None
            raise
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, the limit is {MAX_PIXELS}")
    if max(image.size) > MAX_RATIO * min(image.size):
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, the sides' limit is {MAX_RATIO} to 1")
    return image


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels have no known range")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))  # 257 = 65535 / 255, rounded
