"""Images to pictures: the augmentation of training and the deterministic transform of evaluation, by timm."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Callable, Optional, Sequence, Union, cast

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torchvision.transforms import FiveCrop, TrivialAugmentWide

from utils.errors import ConfigError
from utils.image_size import Size, frozen

from . import band_transforms
from .bands import BandReader
from .batches import Erasure, Picture
from .decode import decode_image
from .sample import Sample

# timm ignores what it does not understand in a policy; a typo must not train with another augmentation.
POLICY = re.compile(
    r"none|null||(rand|augmix|v0r?|originalr?|3a)(-(mstd|mmax|inc|[mnwdabp])\d+(\.\d+)?)*", re.IGNORECASE
)
POLICY_HELP = (
    "it must be none, trivial, or one of timm's policies, like 'rand-m9-mstd0.5-inc1', 'original', '3a' or 'augmix-m3'"
)
MOST = 100  # of a policy's ops, branches and their depth; more is a slip of the pen, and an image would take minutes
TRIVIAL = "trivial"
AUGMENT = ("augment", "jitter")  # names of timm's steps: one of both, or for 3a both


def _posterize(image: Image.Image, bits_to_keep: int, **_) -> Image.Image:
    """timm's posterize, which asks Pillow to keep 0 bits at the highest magnitudes: Pillow >= 13 refuses, older ones
    gave a black image. It is black here with either, as the recipe's results were made.
    """
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep)


auto_augment.NAME_TO_OP.update(dict.fromkeys(["Posterize", "PosterizeIncreasing", "PosterizeOriginal"], _posterize))


class Transform:
    """Makes a sample's image a `Picture`, or a tuple of its views, and leaves its target alone: for labels.

    Its named steps each take the image that the one before gives.

    Args:
        decode: open file -> image, for sources of files.
        steps: the first one takes such an image, or an RGB image of Pillow's.
    """

    def __init__(self, decode: Callable[[BinaryIO], Any], steps: dict[str, Callable[[Any], Any]]):
        self.decode = decode
        self.steps = steps

    def __call__(self, sample: Sample) -> Sample:
        return sample._replace(image=self.picture(sample.image))

    def picture(self, image: Any) -> Union[Picture, tuple[Picture, ...]]:
        for step in self.steps.values():
            image = step(image)
        return image


class Erase:
    """Array (H, W, C) -> `Picture`, with timm's random erasing drawn but not yet done: it is for normalised images.

    timm's class is given something that takes down what it would do to an image.
    """

    def __init__(self, probability: float, mode: str, count: int):
        self.erasing = RandomErasing(probability, mode=mode, max_count=count, device="cpu")

    def __call__(self, pixels: np.ndarray) -> Picture:
        record = _Record(*pixels.shape)
        if self.erasing.probability > 0:
            self.erasing(record)
        return Picture(pixels, tuple(record.erasures))


class Views:
    """Image -> the `Picture`s of its views: first as it is, then augmented and erased, each by draws of its own.

    As timm's AugMixDataset, whose views share crop and flip, and its RandomErasing, which leaves the first split alone.
    """

    def __init__(
        self, count: int, augment: dict[str, Callable[[Any], Any]], to_array: Callable[[Any], np.ndarray], erase: Erase
    ):
        self.count = count
        self.augment = augment
        self.to_array = to_array
        self.erase = erase

    def __call__(self, image: Any) -> tuple[Picture, ...]:
        views = [Picture(self.to_array(image))]
        while len(views) < self.count:
            view = image
            for step in self.augment.values():
                view = step(view)
            views.append(self.erase(self.to_array(view)))
        return tuple(views)


class _Record:
    dtype = torch.float32

    def __init__(self, height: int, width: int, channels: int):
        self.shape = (channels, height, width)
        self.erasures: list[Erasure] = []

    def size(self) -> tuple[int, int, int]:
        return self.shape

    def __setitem__(self, where: tuple[slice, slice, slice], fill: torch.Tensor) -> None:
        _, rows, columns = where
        self.erasures.append(
            Erasure(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start, fill)
        )


@dataclass(frozen=True)
class Augmentation:
    """What is done at random to a training image, as the config's section AUG says it."""

    scale: Sequence[float]  # of a random resized crop: its share of the area, from and to
    ratio: Sequence[float]  # its width by its height, from and to
    hflip: float  # probability of a horizontal flip
    color_jitter: float  # its strength; 0: none
    auto_augment: str  # a policy of timm's, 'trivial' or 'none'
    reprob: float  # of random erasing: the probability, timm's mode, and how many boxes at most
    remode: str
    recount: int
    splits: int = 0  # views of an image, see `Views`; 0: one, augmented


def train_transform(
    img_size: Size,
    interpolation: str,
    mean: Sequence[float],
    augmentation: Augmentation,
    exif: bool = True,
    backend: str = "pil",
    bands: int = 3,
) -> Transform:
    """Image -> augmented `Picture` of that size, or views of it.

    Random resized crop, horizontal flip, an AutoAugment policy or colour jitter ('3a' has both, as timm does), random
    erasing. `mean` is the colour of what a policy moves into the image. All backends make the same draws.

    Args:
        exif: see `decode_image`.
        backend: 'pil': Pillow, the pixels of timm's pipeline. 'cv2': see `data.backend_cv2` and `data.augment_cv2`.
            'nvimgcodec': the same pixels as 'cv2', see `data.crops_nvimgcodec`.
        bands: of the images; 3: RGB. Others have one way, see `data.bands`, whatever the backend, and no colours.

    Raises:
        ConfigError: an unknown policy, or one that the backend does not have.
    """
    place, colours = _timm_steps(img_size, interpolation, mean, augmentation)
    crop, *flips = place
    decode: Callable[[BinaryIO], Any]
    to_array: Optional[Callable[[Any], np.ndarray]] = None
    placed: dict[str, Callable[[Any], Any]]
    augment: dict[str, Callable[[Any], Any]]
    if bands != 3:
        decode, to_array = BandReader(bands, exif), band_transforms.to_array
        placed = {"crop and resize": band_transforms.Resized(crop), **{"flip": flip for flip in flips}}
        augment = {}
    elif backend == "pil":
        decode, to_array = partial(decode_image, exif=exif), np.array
        placed = {"crop and resize": crop, **{"flip": flip for flip in flips}}
        augment = dict(zip(AUGMENT, colours))
    else:
        from .backend_cv2 import colour_steps, place_steps

        decode = reader = _crop_reader(augmentation, exif, backend)
        placed = place_steps(reader.crop, cast(RandomResizedCropAndInterpolation, crop), flips)
        augment = dict(zip(AUGMENT, colour_steps(colours, augmentation.auto_augment)))
    erase = Erase(augmentation.reprob, augmentation.remode, augmentation.recount)
    if augmentation.splits:
        views = Views(augmentation.splits, augment, to_array or np.array, erase)
        return Transform(decode, {**placed, "views": views})
    return Transform(decode, {**placed, **augment, **({"to array": to_array} if to_array else {}), "erase": erase})


def _timm_steps(
    img_size: Size, interpolation: str, mean: Sequence[float], augmentation: Augmentation
) -> tuple[list[Callable[[Any], Any]], list[Callable[[Any], Any]]]:
    """timm's steps on images of Pillow's: crop and flips, and those on colours."""
    policy = augmentation.auto_augment
    _require_policy(policy)
    trivial = policy.lower() == TRIVIAL
    for_timm = None if trivial or policy.lower() in ("", "none", "null") else policy
    try:
        place, colour, _ = create_transform(
            frozen(img_size),
            is_training=True,
            scale=(augmentation.scale[0], augmentation.scale[1]),
            ratio=(augmentation.ratio[0], augmentation.ratio[1]),
            hflip=augmentation.hflip,
            color_jitter=None if trivial else augmentation.color_jitter or None,  # type: ignore[arg-type]  # None: without
            auto_augment=for_timm,
            interpolation=interpolation,
            mean=tuple(mean),
            separate=True,
        )
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"AUG.AUTO_AUGMENT is {for_timm!r}; {POLICY_HELP}") from error
    return place.transforms, [_trivial_augment(interpolation, mean)] if trivial else colour.transforms


def _require_policy(policy: str) -> None:
    """Raises ConfigError if it is none that is known, or an image would take minutes with it."""
    if not (policy.lower() == TRIVIAL or POLICY.fullmatch(policy)):
        raise ConfigError(f"AUG.AUTO_AUGMENT is {policy!r}; {POLICY_HELP}")
    counts = dict(re.findall(r"-([anwd])(\d+(?:\.\d+)?)", policy.lower()))
    if float(counts.get("a", 1)) == 0 or max(map(float, counts.values()), default=0) > MOST:
        raise ConfigError(
            f"AUG.AUTO_AUGMENT is {policy!r}; its a must be greater than 0, and a, n, w and d at most {MOST}"
        )


def _crop_reader(augmentation: Augmentation, exif: bool, backend: str):
    from .crops import CropReader, decode_cv2

    if backend == "nvimgcodec":
        from .crops_nvimgcodec import RegionDecoder

        return CropReader(augmentation.scale, augmentation.ratio, exif, RegionDecoder())
    return CropReader(augmentation.scale, augmentation.ratio, exif, decode_cv2)


def _trivial_augment(interpolation: str, mean: Sequence[float]) -> TrivialAugmentWide:
    """torchvision's, filled with the mean colour as timm's policies are. Its draws are torch's alone."""
    # Pillow moves nothing by lanczos
    mode = str_to_interp_mode("bicubic" if interpolation == "lanczos" else interpolation)
    return TrivialAugmentWide(interpolation=mode, fill=[min(255, round(255 * level)) for level in mean])


def eval_transform(
    img_size: Size,
    interpolation: str,
    crop_pct: float,
    exif: bool = True,
    crops: int = 1,
    crop_mode: str = "center",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    bands: int = 3,
) -> Transform:
    """Image -> `Picture` of that size: resized to img_size / crop_pct as timm's `crop_mode` says, centre crop. Always by
    Pillow, so that accuracies do not depend on how a model was trained.

    - 'center': its sides keep their ratio, and it covers that size.
    - 'border': its sides keep their ratio, and it fits into that size; what is missing has the colour `mean`.
    - 'squash': it has that size; its sides do not keep their ratio.

    With 5 `crops`, as many views: torchvision's, the corners and the centre of the resized image. Images of 3 `bands` are
    RGB, for others see `data.bands`.
    """
    resize, crop, *_ = steps = create_transform(
        frozen(img_size),
        is_training=False,
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        mean=tuple(mean),
    ).transforms
    if bands != 3:
        border = mean if crop_mode == "border" else ()
        return Transform(BandReader(bands, exif), band_transforms.eval_steps(steps, img_size, crops, border))
    decode = partial(decode_image, exif=exif)
    if crops == 5:
        return Transform(decode, {"resize": resize, "crop": FiveCrop(frozen(img_size)), "views": _plain_views})
    return Transform(decode, {"resize": resize, "crop": crop, "to array": np.array, "picture": Picture})


def _plain_views(images: Sequence[Image.Image]) -> tuple[Picture, ...]:
    return tuple(Picture(np.array(image)) for image in images)
