"""What the tasks share that look at images whole, each in its own size: their model, its folder, the images one by one."""

import argparse
from functools import partial
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np
import torch

from data.batches import Finish, Picture, collate_lists
from data.decode import decode_image
from data.sample import Sample
from data.sources.reading import read_image
from engine.inference.trained import Trained, load_trained
from engine.setup.model import place
from utils.device import choose_arithmetic, select_device
from utils.errors import ConfigError, DataError, OutputError, printable
from utils.files import open_regular, unwritable

from ..file_names import names_of


def require_flags(args: argparse.Namespace, task: str, others: Sequence[str]) -> None:
    """Raises ConfigError: a flag, one of `others` or an engine, is given that models of the task have no use for."""
    used = next((name for name in others if getattr(args, name)), "")
    if used or args.engine != "torch":
        flag = f"--{(used or 'engine').replace('_', '-')}"
        raise ConfigError(f"{flag}: is for classification, and the checkpoint is of TASK {task}; leave it out")


def open_model(args: argparse.Namespace) -> tuple[Trained, torch.device]:
    """The checkpoint's model on its device. Raises CheckpointError: it cannot be used."""
    trained = load_trained(args.checkpoint, args.cfg, args.classes, args.weights)
    device = select_device(args.device, 0)
    choose_arithmetic(device, exact=True, deterministic=False, fixed_sizes=False)
    place(trained.model, device, trained.cfg.TRAIN.CHANNELS_LAST)
    return trained, device


def make_folder(folder: Path) -> None:
    """Raises OutputError: it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def pictures(paths: Sequence[str], trained: Trained, problems: list[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Each image's path, a name for what is written of it, and its pixels, uint8 (H, W, 3); a line is added to
    `problems` for a file that has none.
    """
    decode = partial(decode_image, exif=trained.cfg.DATA.EXIF)
    for path, name in zip(paths, names_of(paths)):
        try:
            image = read_image(printable(path), partial(open_regular, path), decode, "give an image file")
        except (DataError, OutputError) as error:
            problems.append(str(error))
            continue
        yield path, name, np.array(image)


def as_images(pixels: np.ndarray, trained: Trained, device: torch.device) -> list[torch.Tensor]:
    """A picture (H, W, 3) as the model takes it: one normalised image (3, H, W)."""
    data = trained.cfg.DATA
    return Finish(data.MEAN, data.STD, device)(collate_lists([Sample(Picture(pixels), 0)])).images
