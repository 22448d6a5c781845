"""Corrupted images as in ImageNet-C, made from clean ones by imagecorruptions-imaug.

The published images are made by the authors' code, which needs ImageMagick; this package's motion blur, snow, frost
and elastic transform are other code, so that figures on its images are near the published benchmark's but
are not the same measurement.
"""

import inspect
import io
from typing import Any, Optional

import numpy as np
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from utils.errors import ConfigError, DataError, one_line
from utils.rng import derive_seed

from .sources.source import Source

# of those on PyPI the one that runs with numpy 2 and keeps the paper's strengths
PACKAGE = "imagecorruptions-imaug==1.1.5"
INSTALL = f"pip install --no-deps {PACKAGE} and pip install scikit-image numba"  # it would bring a second OpenCV along
QUALITY = 85  # of the JPEG files that ImageNet-C consists of
PLACE = Compose([Resize(256), CenterCrop(224)])  # what the authors do before they corrupt


def load_corruptions() -> dict[str, Any]:
    """The package's functions by name.

    Raises:
        ConfigError: it is not installed, or does not run with the packages beside it.
    """
    try:
        from imagecorruptions import corruption_dict
    except Exception as error:  # its imports fail in many ways beside packages that are too new
        raise ConfigError(f"{PACKAGE}: cannot be imported ({one_line(error)}); {INSTALL}") from error
    return corruption_dict


def corrupt(image: Image.Image, corruption: str, severity: int, seed: int) -> Image.Image:
    """An RGB image of at least 32 x 32 pixels, corrupted; a function of its arguments alone.

    Args:
        corruption: a name of ImageNet-C's, such as 'gaussian_noise'.
        severity: 1 .. 5.
        seed: 32 bits, of all that is random in it.
    """
    function = load_corruptions()[corruption]
    # the others draw from NumPy's state
    seeded = {"seed": seed} if "seed" in inspect.signature(function).parameters else {}
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        pixels = np.asarray(function(image, severity, **seeded))
    finally:
        np.random.set_state(state)
    return Image.fromarray(np.uint8(pixels))


def failure_of(corruption: str, severity: int) -> Optional[str]:
    """Why a corruption cannot be made here, None if it can: it is tried on an image of noise."""
    if corruption not in load_corruptions():
        return "the package has none of that name"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))
    try:
        size = corrupt(image, corruption, severity, 0).size
        return None if size == image.size else f"its image has {size[0]} x {size[1]} pixels"
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"


class CorruptedSource:
    """A source's images resized, cropped to 224 px, corrupted, and compressed as JPEG, as the authors of ImageNet-C did.

    An image's noise depends on its key, the corruption and the severity alone, not on which process loads it when.
    """

    def __init__(self, source: Source, corruption: str, severity: int):
        self.source = source
        self.corruption = corruption
        self.severity = severity
        self.classes = source.classes
        self.fingerprint = f"{source.fingerprint} {corruption} {severity}"

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def name(self, index: int) -> str:
        return f"{self.source.name(index)} ({self.corruption} {self.severity})"

    def load(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.source.load(index)
        seed = derive_seed(self.key(index), self.corruption, self.severity)
        file = io.BytesIO()
        try:
            corrupted = corrupt(PLACE(image), self.corruption, self.severity, seed)
        except Exception as error:  # of the package's
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise DataError(f"{self.name(index)}: cannot be corrupted ({reason}); leave the corruption out") from error
        corrupted.save(file, "JPEG", quality=QUALITY)
        return Image.open(file).convert("RGB"), label
