"""The FAT and the image that a figure is of, from its arguments."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Optional

import numpy as np
import torch

from engine.inference.trained import Trained, load_trained
from utils.errors import ConfigError, DataError
from utils.image_size import Size, size_text

from ..visualize.inputs import require_fat, require_size
from . import quickstart


class TrainedFAT(Trained):
    """A FAT of a checkpoint, with what a figure says of it."""

    def introduce(self, img_size: Size) -> str:
        """What a figure of it must say of the weights."""
        data = (
            "ImageNet-1k"
            if self.is_of_imagenet
            else f"{self.cfg.DATA.DATA_PATH or self.cfg.DATA.DATASET}, not on ImageNet"
        )
        text = f"{self.cfg.MODEL.NAME} ({self.weights} weights of {self.path}) trained on {data}: {len(self.classes)} classes, {size_text(self.own_size)} px"
        return text + (f"; shown here with {size_text(img_size)} px" if img_size != self.own_size else "")

    @property
    def limits(self) -> str:
        """What a figure of it does not say; '' for ImageNet's weights."""
        return (
            ""
            if self.is_of_imagenet
            else "It shows how the figure is computed and is no statement about ImageNet models."
        )


def load_fat(path: Path) -> TrainedFAT:
    """The FAT of a checkpoint, see `engine.inference.trained.load_trained`.

    Raises:
        CheckpointError: also if it is of another model.
    """
    trained = load_trained(path)
    require_fat(trained)
    return TrainedFAT(**{field.name: getattr(trained, field.name) for field in fields(trained)})


def read_image(path: Path, trained: Trained, img_size: Size) -> tuple[np.ndarray, torch.Tensor]:
    """An image file as the model's evaluation sees it.

    Returns:
        RGB pixels (height, width, 3), uint8, and the normalised image (1, 3, height, width).

    Raises:
        ConfigError: no size for an image.
        DataError: no such file, or no image.
    """
    require_size(img_size)
    try:
        picture = trained.read(path, img_size)
    except DataError as error:
        raise DataError(f"--image: {error}") from error
    return trained.shown(picture), trained.normalise([picture])


def add_arguments(parser: argparse.ArgumentParser, img_size: Optional[int]) -> None:
    """Which weights and which image; `img_size` is the default, None for the size that the model was evaluated on."""
    parser.add_argument(
        "--checkpoint", type=Path, help="a FAT's, of main.py (default: the quickstart's, trained if it is not there)"
    )
    parser.add_argument(
        "--image", type=Path, help="an image file (default, with the default checkpoint: one of the quickstart's)"
    )
    shown = img_size or "what the checkpoint was evaluated on"
    parser.add_argument(
        "--img-size", type=int, default=img_size, metavar="PX", help=f"the image's, for the model (default: {shown})"
    )


def inputs_of(args: argparse.Namespace) -> tuple[TrainedFAT, Path]:
    """The checkpoint and the image that the arguments name; those of the quickstart where they name none.

    Raises:
        ConfigError: a checkpoint without an image.
    """
    if args.checkpoint and not args.image:
        raise ConfigError("--image: which one should the checkpoint's model look at? Give an image file")
    if not args.checkpoint:
        args.checkpoint = quickstart.checkpoint()
    return load_fat(args.checkpoint), args.image or quickstart.image()
