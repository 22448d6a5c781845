"""Images to tensors: the augmentation of training and the deterministic transform of evaluation, by timm."""

import re
from typing import Callable, Sequence

from PIL import Image
from timm.data import auto_augment, create_transform

from utils.errors import ConfigError


# timm ignores what it does not understand in a policy; a typo must not train with another augmentation.
POLICY = re.compile(
    r"none|null||(rand|augmix|v0r?|originalr?|3a)(-(mstd|mmax|inc|[mnwdabp])\d+(\.\d+)?)*", re.IGNORECASE
)
POLICY_HELP = "it must be none or one of timm's policies, like 'rand-m9-mstd0.5-inc1', 'original' or 'augmix-m3'"


def _posterize(image: Image.Image, bits_to_keep: int, **_) -> Image.Image:
    """timm's posterize, which asks Pillow to keep 0 bits at the highest magnitudes: Pillow >= 13 refuses, older ones
    gave a black image. It is black here with either, as the recipe's results were made.
    """
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep)


auto_augment.NAME_TO_OP.update(dict.fromkeys(["Posterize", "PosterizeIncreasing", "PosterizeOriginal"], _posterize))


def train_transform(
    img_size: int,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    scale: Sequence[float],
    ratio: Sequence[float],
    hflip: float,
    color_jitter: float,
    auto_augment_policy: str,
    reprob: float,
    remode: str,
    recount: int,
) -> Callable[[Image.Image], "torch.Tensor"]:  # noqa: F821
    """RGB image -> augmented tensor (3, img_size, img_size).

    Random resized crop, horizontal flip, an AutoAugment policy or colour jitter, normalisation, random erasing.

    Raises:
        ConfigError: a policy string that timm does not know.
    """
    if not POLICY.fullmatch(auto_augment_policy):
        raise ConfigError(f"AUG.AUTO_AUGMENT is {auto_augment_policy!r}; {POLICY_HELP}")
    policy = None if auto_augment_policy.lower() in ("", "none", "null") else auto_augment_policy
    try:
        return create_transform(
            img_size,
            is_training=True,
            scale=tuple(scale),
            ratio=tuple(ratio),
            hflip=hflip,
            color_jitter=color_jitter or None,
            auto_augment=policy,
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
            re_prob=reprob,
            re_mode=remode,
            re_count=recount,
        )
    except (AssertionError, ValueError, KeyError, IndexError):
        raise ConfigError(f"AUG.AUTO_AUGMENT is {policy!r}; {POLICY_HELP}") from None


def eval_transform(
    img_size: int, interpolation: str, mean: Sequence[float], std: Sequence[float], crop_pct: float
) -> Callable[[Image.Image], "torch.Tensor"]:  # noqa: F821
    """RGB image -> tensor (3, img_size, img_size): resize to img_size / crop_pct, centre crop, normalisation."""
    return create_transform(
        img_size, is_training=False, interpolation=interpolation, mean=tuple(mean), std=tuple(std), crop_pct=crop_pct
    )
