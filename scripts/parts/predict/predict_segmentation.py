"""Label maps and overlays of images, by a segmentation model."""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import torch

from data.batches import Finish, Picture, collate_lists
from data.decode import decode_image
from data.masks import label_image
from data.sample import Sample
from data.sources.reading import read_image
from engine.inference.trained import Trained, load_trained
from engine.setup.model import place
from engine.setup.precision import create_precision
from engine.tasks import create_task
from utils.device import choose_arithmetic, select_device
from utils.errors import ConfigError, DataError, OutputError, printable
from utils.files import atomic_write, open_regular, unwritable
from utils.label_colours import over
from utils.pictures import encode_jpeg

OTHERS = ("csv", "json", "sheet", "fused", "img_size")  # flags of classification


def predict(args: argparse.Namespace, paths: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Writes <name>.png, a label map with the values that the data set's masks have, and <name>_overlay.jpg of each image.

    Args:
        say: takes a line of what else is to be known.

    Returns:
        A line for each file that has no image.

    Raises:
        ConfigError: no --output, or flags that such a model has no use for.
        CheckpointError: the checkpoint cannot be used.
        OutputError: the folder cannot be written to.
    """
    _require_flags(args)
    trained = load_trained(args.checkpoint, args.cfg, args.classes, args.weights)
    device = select_device(args.device, 0)
    choose_arithmetic(device, exact=True, deterministic=False, fixed_sizes=False)
    place(trained.model, device, trained.cfg.TRAIN.CHANNELS_LAST)
    folder, problems = Path(args.output), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    say(
        f"{args.checkpoint}: {trained.cfg.MODEL.NAME}, {trained.weights} weights, {len(trained.classes)} classes, {device}"
    )
    for path, name in zip(paths, names_of(paths)):
        try:
            pixels = read_picture(path, trained)
        except (DataError, OutputError) as error:
            problems.append(str(error))
            continue
        labels = labels_of(trained, pixels, device, args.amp)
        values = label_image(labels, trained.cfg.SEG.REDUCE_ZERO_LABEL)
        with atomic_write(folder / f"{name}.png") as file:
            values.save(file, format="PNG")
        with atomic_write(folder / f"{name}_overlay.jpg") as file:
            file.write(encode_jpeg(over(pixels, labels, len(trained.classes))))
        print(f"{printable(path)}  {shares(labels, trained.classes, args.topk)}", flush=True)
    say(f"wrote {folder}: {len(paths) - len(problems)} label maps and overlays")
    return problems


def _require_flags(args: argparse.Namespace) -> None:
    used = next((name for name in OTHERS if getattr(args, name)), "")
    if used or args.engine != "torch":
        flag = f"--{(used or 'engine').replace('_', '-')}"
        raise ConfigError(f"{flag}: is for classification, and the checkpoint is of TASK segmentation; leave it out")
    if not args.output:
        raise ConfigError("--output: is not given; a segmentation model's label maps and overlays need a folder")


def read_picture(path: str, trained: Trained) -> np.ndarray:
    """An image file's pixels, uint8 (H, W, 3). Raises DataError, OutputError: it has none."""
    decode = partial(decode_image, exif=trained.cfg.DATA.EXIF)
    return np.array(read_image(printable(path), lambda: open_regular(path), decode, "give an image file"))


@torch.inference_mode()
def labels_of(trained: Trained, pixels: np.ndarray, device: torch.device, amp: bool = False) -> np.ndarray:
    """The classes (H, W) of a picture's pixels (H, W, 3), uint8, as the model's evaluation finds them."""
    data = trained.cfg.DATA
    batch = Finish(data.MEAN, data.STD, device)(collate_lists([Sample(Picture(pixels), 0)]))
    with create_precision(amp, "auto", device).autocast():
        return create_task(trained.cfg).inference().classes(trained.model, batch.images[0]).cpu().numpy()


def names_of(paths: Sequence[str]) -> list[str]:
    """A name for the files of each image: its own without the suffix, with a number where several would have it."""
    names: list[str] = []
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def shares(labels: np.ndarray, classes: Sequence[str], most: int) -> str:
    """The classes that most pixels have, with their shares."""
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]][:most]
    return ", ".join(f"{printable(classes[i])} {100 * counts[i] / labels.size:.1f} %" for i in order)
