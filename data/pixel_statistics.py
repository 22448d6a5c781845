"""Mean and standard deviation of each band over all pixels of a source's images, for DATA.MEAN and DATA.STD."""

import math
from fractions import Fraction
from typing import Any, NamedTuple, Sequence

import numpy as np

from utils.errors import DataError

from .bands import RANGES
from .batches import Batch
from .loader import Loading, dataset_of, eval_loader
from .sample import Sample
from .sources.source import AnySource

UNIT = 65535  # integers are counted in parts of it: 16 bits as they are, 8 bits times 257
BATCH = 16  # images that a loading process sends at a time


class PixelSums(NamedTuple):
    """Of an image, by bands. Integers, and so exact, where its pixels are; floats where they are floats."""

    pixels: int
    values: list[Any]
    squares: list[Any]
    is_float: bool


class PixelStatistics(NamedTuple):
    """By bands, on the scale on which a model gets images."""

    images: int
    pixels: int
    mean: list[float]
    std: list[float]
    failures: list[str]  # lines of images that could not be read


def sums_of(sample: Sample) -> Sample:
    """The sample with `PixelSums` in place of its image, an RGB image of Pillow's or an array (H, W, bands)."""
    pixels = np.asarray(sample.image)
    flat = pixels.reshape(-1, pixels.shape[-1])
    if pixels.dtype.kind == "f":
        flat = flat.astype(np.float64)
    else:  # the square of 16 bits, of 89 million pixels, stays below 64 bits
        flat = flat.astype(np.uint64) * np.uint64(UNIT / RANGES[pixels.dtype.name])
    sums = PixelSums(len(flat), flat.sum(0).tolist(), (flat * flat).sum(0).tolist(), pixels.dtype.kind == "f")
    return sample._replace(image=sums)


def measure(source: AnySource, on_error: str, loading: Loading) -> PixelStatistics:
    """The statistics of all images of a source. Sums of integers are exact and those of floats rounded once, so that they
    do not depend on the number of loading processes.

    Raises:
        DataError: an image cannot be read, or a band is the same everywhere.
    """
    loader = eval_loader(dataset_of(source, sums_of, on_error, collate=_together), BATCH, 0, 1, loading)
    images = [sums for batch in loader.batches() for sums in batch.targets]
    if not images:
        raise DataError(
            "DATA.DATA_PATH: none of its training images can be read; look at them with --opts DATA.ON_ERROR raise"
        )
    pixels = sum(sums.pixels for sums in images)
    mean, std = [], []
    for band in range(len(images[0].values)):
        total = _total([(sums.values[band], sums.is_float) for sums in images], UNIT)
        squares = _total([(sums.squares[band], sums.is_float) for sums in images], UNIT**2)
        variance = squares / pixels - (total / pixels) ** 2
        if variance <= 0:
            raise DataError(
                f"DATA.DATA_PATH: band {band + 1} is the same in all pixels, so that its standard deviation is 0; leave it out"
            )
        mean.append(float(total / pixels))
        std.append(math.sqrt(variance))
    return PixelStatistics(len(images), pixels, mean, std, loader.take_failures())


def _together(samples: Sequence[Sample]) -> Batch:
    return Batch(images=[], targets=[sample.image for sample in samples], keys=[sample.key for sample in samples])


def _total(parts: Sequence[tuple[Any, bool]], unit: int) -> Fraction:
    """The sum of integers, in parts of a unit, and floats."""
    integers = sum(value for value, is_float in parts if not is_float)
    return Fraction(integers, unit) + Fraction(math.fsum(value for value, is_float in parts if is_float))
