"""A trained model with all that it needs to look at an image, from a checkpoint alone."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from yacs.config import CfgNode

from data.batches import Finish, Item, collate_items
from data.transforms import eval_transform
from engine.build import better_weights
from engine.checkpoint import load_weights, read_checkpoint, weights_of
from engine.reports import is_imagenet, meanings
from engine.tasks import create_task
from models import FAT
from utils.config import config_from
from utils.defaults import RULES
from utils.errors import CheckpointError, ConfigError, DataError
from utils.files import require_no_device

from . import quickstart


@dataclass(frozen=True)
class Trained:
    """A FAT in evaluation mode, and what it was trained on."""

    path: Path
    model: FAT
    cfg: CfgNode
    classes: list[str]
    weights: str  # 'raw' or 'ema'

    @property
    def is_of_imagenet(self) -> bool:
        return is_imagenet(self.classes)

    @property
    def own_size(self) -> int:
        """px of the images it was evaluated on."""
        return self.cfg.TEST.IMG_SIZE or self.cfg.DATA.IMG_SIZE

    def introduce(self, img_size: int) -> str:
        """What a figure of it must say of the weights."""
        data = "ImageNet-1k" if self.is_of_imagenet else f"{self.cfg.DATA.DATA_PATH or self.cfg.DATA.DATASET}, not on ImageNet"
        text = f"{self.cfg.MODEL.NAME} ({self.weights} weights of {self.path}) trained on {data}: {len(self.classes)} classes, {self.own_size} px"
        return text + (f"; shown here with {img_size} px" if img_size != self.own_size else "")

    @property
    def limits(self) -> str:
        """What a figure of it does not say; '' for ImageNet's weights."""
        return "" if self.is_of_imagenet else "It shows how the figure is computed and is no statement about ImageNet models."

    def name_of(self, label: int) -> str:
        return meanings(self.classes)[label].split(",")[0] or self.classes[label]


def load_trained(path: Path) -> Trained:
    """The FAT of a checkpoint of main.py; its averaged weights if these were what made it the best one.

    Raises:
        CheckpointError: no such file, a damaged one, one of another tool, or of another model.
    """
    checkpoint = read_checkpoint(path)
    weights = weights_of(checkpoint, path)
    config, classes = checkpoint.get("config"), checkpoint.get("classes")
    if not isinstance(config, dict) or not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"{path}: has no config and class names, so no checkpoint of main.py; use a run's best.pth")
    try:
        cfg = config_from(config, f"{path}: its config")
        model = create_task(cfg).build_model(len(classes))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(model, FAT):
        raise CheckpointError(f"{path}: is of {cfg.MODEL.NAME}, no FAT; use a FAT's checkpoint")
    name = better_weights(checkpoint, weights)
    load_weights(model, weights[name], path)
    return Trained(path, model.eval(), cfg, classes, name)


def read_image(path: Path, trained: Trained, img_size: int) -> tuple[np.ndarray, torch.Tensor]:
    """An image file as the model's evaluation sees it.

    Returns:
        RGB pixels (img_size, img_size, 3), uint8, and the normalised image (1, 3, img_size, img_size).

    Raises:
        ConfigError: no size for an image.
        DataError: no such file, or no image.
    """
    sizes = RULES["DATA.IMG_SIZE"]
    if not sizes.holds(img_size):
        raise ConfigError(f"--img-size is {img_size}; it must be {sizes.text}")
    cfg = trained.cfg
    transform = eval_transform(img_size, cfg.DATA.INTERPOLATION, cfg.TEST.CROP_PCT, cfg.DATA.EXIF)
    try:
        require_no_device(path)
        with open(path, "rb") as file:
            picture = transform(transform.decode(file))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's are of many kinds
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"--image: {path}: cannot be read ({reason}); give an image file") from None
    batch, _ = collate_items([Item((picture, 0))])
    finish = Finish(cfg.DATA.MEAN, cfg.DATA.STD, torch.device("cpu"))
    return picture.pixels, finish(batch).images


def require_number(flag: str, number: int, size: int, of: str) -> int:
    """A number that counts from 1, counted from 0.

    Raises:
        ConfigError: it is not among 1 .. size.
    """
    if not 1 <= number <= size:
        raise ConfigError(f"{flag}: there is no {number}; {of} has {size}, counted from 1")
    return number - 1


def add_arguments(parser: argparse.ArgumentParser, img_size: Optional[int]) -> None:
    """Which weights and which image; `img_size` is the default, None for the size that the model was evaluated on."""
    parser.add_argument("--checkpoint", type=Path, help="a FAT's, of main.py (default: the quickstart's, trained if it is not there)")
    parser.add_argument("--image", type=Path, help="an image file (default, with the default checkpoint: one of the quickstart's)")
    shown = img_size or "what the checkpoint was evaluated on"
    parser.add_argument("--img-size", type=int, default=img_size, metavar="PX", help=f"the image's, for the model (default: {shown})")


def inputs_of(args: argparse.Namespace) -> tuple[Trained, Path]:
    """The checkpoint and the image that the arguments name; those of the quickstart where they name none.

    Raises:
        ConfigError: a checkpoint without an image.
    """
    if args.checkpoint and not args.image:
        raise ConfigError("--image: which one should the checkpoint's model look at? Give an image file")
    if not args.checkpoint:
        args.checkpoint = quickstart.checkpoint()
    return load_trained(args.checkpoint), args.image or quickstart.image()
