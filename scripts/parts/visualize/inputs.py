"""The model and the images that a picture is of, from its arguments; and where pictures go."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Optional

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from engine.inference.trained import Trained, load_trained
from models import FAT
from utils.cli import add_weights, image_size, whole_number
from utils.errors import CheckpointError, ConfigError, DataError, one_line, printable
from utils.files import atomic_write, unwritable
from utils.image_size import Size, size_text
from utils.pictures import encode_png, titled
from utils.schema import SIZE

from ..file_names import names_of
from .panels import predict, said


class Album:
    """Pictures as PNG files in a folder, and as images of TensorBoard in its `tensorboard/`.

    Nothing is written before the first picture. Used as a context, at whose end TensorBoard's file is whole.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.writer: Optional[SummaryWriter] = None

    def add(self, name: str, tag: str, picture: np.ndarray) -> None:
        """Writes an RGB picture (height, width, 3), uint8, as <name>.png; `tag` is what TensorBoard calls it.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.folder / f"{name}.png"
        with atomic_write(path) as file:
            file.write(encode_png(picture))
        try:
            self.writer = self.writer or SummaryWriter(self.events)
            self.writer.add_image(tag, picture, dataformats="HWC")
            self.writer.flush()
        except OSError as error:
            raise unwritable(self.events, error) from error
        print(f"wrote {printable(path)}", flush=True)

    @property
    def events(self) -> Path:
        """The folder of TensorBoard's files."""
        return self.folder / "tensorboard"

    def __enter__(self) -> "Album":
        return self

    def __exit__(self, *_) -> None:
        if self.writer:
            self.writer.close()


@dataclass(frozen=True)
class Shot:
    """An image as a model sees it."""

    path: Path
    name: str  # for file names and tags, another one for each image
    pixels: np.ndarray  # RGB (H, W, 3), uint8
    image: torch.Tensor  # (1, 3, H, W), normalised
    predictions: list[tuple[str, float]]  # the likeliest classes and their probabilities

    @property
    def size(self) -> Size:
        height, width = self.pixels.shape[:2]
        return height if height == width else (height, width)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="of main.py, such as a run's best.pth"
    )
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="config, for a checkpoint that carries none")
    parser.add_argument(
        "--classes", default="", metavar="NAMES",
        help="names of the classes, for a checkpoint without: a file with one in each line, or imagenet-1k",
    )  # fmt: skip
    add_weights(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the pictures go (default: look/ beside the checkpoint)"
    )


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="image files; they go before flags that take several values",
    )
    add_model_arguments(parser)
    size = "the images', for the model, such as 224 or 192x320 (default: what the checkpoint was evaluated on)"
    parser.add_argument("--img-size", type=image_size(least=1, most=10**9), metavar="PX", help=size)


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Which FASA."""
    parser.add_argument("--stage", type=whole_number(1), nargs="+", metavar="N", help="from 1 (default: each)")
    parser.add_argument("--block", type=whole_number(1), metavar="N", help="in the stage, from 1 (default: the last)")


def open_model(args: argparse.Namespace) -> Trained:
    """The model that the arguments name, once it is known that there are images and a size for them.

    Raises:
        ConfigError: no images, or no size for one.
        CheckpointError: see `engine.inference.trained.load_trained`.
    """
    if not args.images:
        raise ConfigError(
            "IMAGE: which ones should the model look at? Give image files, before flags that take several values"
        )
    if args.img_size is not None:
        require_size(args.img_size)
    trained = load_model(args)
    fixed = (getattr(trained.model, "pretrained_cfg", None) or {}).get("fixed_input_size")
    if fixed and args.img_size not in (None, trained.cfg.DATA.IMG_SIZE):
        raise ConfigError(
            f"--img-size: {trained.cfg.MODEL.NAME} takes images of {size_text(trained.cfg.DATA.IMG_SIZE)} px only; leave it out"
        )
    return trained


def load_model(args: argparse.Namespace) -> Trained:
    """The model that the arguments name; says what was done to get its weights, and what it sees otherwise than in training.

    Raises:
        CheckpointError: see `engine.inference.trained.load_trained`.
    """
    trained = load_trained(args.checkpoint, args.cfg, args.classes, args.weights)
    for line in trained.warnings:
        print(f"warning: {printable(line)}", file=sys.stderr, flush=True)
    if trained.note:
        print(f"note: {printable(args.checkpoint)}: {printable(trained.note)}", flush=True)
    return trained


def require_fat(trained: Trained) -> FAT:
    """Raises CheckpointError for another model."""
    if not isinstance(trained.model, FAT):
        raise CheckpointError(f"{trained.path}: is of {trained.cfg.MODEL.NAME}, no FAT; use a FAT's checkpoint")
    return trained.model


def require_size(img_size: Size) -> None:
    """Raises ConfigError for what is no size of images in px."""
    if not SIZE.holds(img_size):
        raise ConfigError(f"--img-size is {size_text(img_size)}; it must be {SIZE.text}")


def require_number(flag: str, number: int, size: int, of: str) -> int:
    """A number that counts from 1, counted from 0.

    Raises:
        ConfigError: it is not among 1 .. size.
    """
    if not 1 <= number <= size:
        raise ConfigError(f"{flag}: there is no {number}; {of} has {size}, counted from 1")
    return number - 1


def places_of(args: argparse.Namespace, model: FAT, name: str) -> list[tuple[int, int]]:
    """Stage and block of each FASA that the arguments name, counted from 0.

    Raises:
        ConfigError: there is no such stage or block.
    """
    stages = [
        require_number("--stage", number, len(model.layers), name)
        for number in args.stage or range(1, len(model.layers) + 1)
    ]
    depths = [len(model.layers[stage].blocks) for stage in stages]
    blocks = [
        require_number("--block", args.block or depth, depth, f"stage {stage + 1}")
        for stage, depth in zip(stages, depths)
    ]
    return list(dict.fromkeys(zip(stages, blocks)))


def each_image(
    args: argparse.Namespace, trained: Trained, kind: str, draw: Callable[[Shot], Iterable[tuple[str, np.ndarray]]]
) -> list[str]:
    """Draws the pictures of each image: <kind>_<image>_<part>.png.

    Args:
        draw: an image -> parts' names ('' for a single one) and pictures.

    Returns:
        What is to be said of the images that could not be read.

    Raises:
        ConfigError: the model cannot take images of this size.
        OutputError: a picture cannot be written.
    """
    unreadable = []
    with Album(args.output or args.checkpoint.parent / "look") as album:
        for path, name in zip(args.images, names_of(args.images)):
            try:
                shot = take(path, name, trained, args.img_size or trained.own_size)
            except DataError as error:
                unreadable.append(str(error))
                continue
            print(printable(f"{path}: {', '.join(map(said, shot.predictions[:3]))}"), flush=True)
            for part, picture in draw(shot):
                file = "_".join(filter(None, [kind, name, part.replace(" ", "")]))
                album.add(file, "/".join(filter(None, [kind, name, part])), picture)
    return unreadable


def take(path: Path, name: str, trained: Trained, img_size: Size) -> Shot:
    """Raises DataError for what is no image, ConfigError if the model cannot take this size."""
    picture = trained.read(path, img_size)
    image = trained.normalise([picture])
    try:
        predictions = predict(trained, image)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = one_line(error, 200)
        raise ConfigError(
            f"--img-size: {trained.cfg.MODEL.NAME} cannot take images of {size_text(img_size)} px ({reason}); use another size"
        ) from error
    return Shot(path, name, trained.shown(picture), image, predictions)


def introduce(picture: np.ndarray, shot: Shot, trained: Trained, text: str) -> np.ndarray:
    """The picture under a title: the image, the model, and a text."""
    model = f"{trained.cfg.MODEL.NAME}, {trained.weights} weights of {trained.path}, {size_text(shot.size)} px"
    return titled(picture, f"{shot.path}: {', '.join(map(said, shot.predictions[:3]))}\n{model}\n{text}")
