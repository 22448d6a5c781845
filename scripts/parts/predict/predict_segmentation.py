"""Label maps and overlays of images, by a segmentation model."""

import argparse
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import torch

from data.masks import label_image
from engine.inference.trained import Trained
from engine.setup.precision import create_precision
from engine.tasks import create_task
from utils.errors import ConfigError, printable
from utils.files import atomic_write
from utils.label_colours import over
from utils.pictures import encode_jpeg

from .whole_images import as_images, make_folder, open_model, pictures, require_flags

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
    require_flags(args, "segmentation", OTHERS)
    if not args.output:
        raise ConfigError("--output: is not given; a segmentation model's label maps and overlays need a folder")
    trained, device = open_model(args)
    folder = Path(args.output)
    make_folder(folder)
    say(
        f"{args.checkpoint}: {trained.cfg.MODEL.NAME}, {trained.weights} weights, {len(trained.classes)} classes, {device}"
    )
    problems: list[str] = []
    for path, name, pixels in pictures(paths, trained, problems):
        labels = labels_of(trained, pixels, device, args.amp)
        values = label_image(labels, trained.cfg.SEG.REDUCE_ZERO_LABEL)
        with atomic_write(folder / f"{name}.png") as file:
            values.save(file, format="PNG")
        with atomic_write(folder / f"{name}_overlay.jpg") as file:
            file.write(encode_jpeg(over(pixels, labels, len(trained.classes))))
        print(f"{printable(path)}  {shares(labels, trained.classes, args.topk)}", flush=True)
    say(f"wrote {folder}: {len(paths) - len(problems)} label maps and overlays")
    return problems


@torch.inference_mode()
def labels_of(trained: Trained, pixels: np.ndarray, device: torch.device, amp: bool = False) -> np.ndarray:
    """The classes (H, W) of a picture's pixels (H, W, 3), uint8, as the model's evaluation finds them."""
    (image,) = as_images(pixels, trained, device)
    with create_precision(amp, "auto", device).autocast():
        return create_task(trained.cfg).inference().classes(trained.model, image).cpu().numpy()


def shares(labels: np.ndarray, classes: Sequence[str], most: int) -> str:
    """The classes that most pixels have, with their shares."""
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]][:most]
    return ", ".join(f"{printable(classes[i])} {100 * counts[i] / labels.size:.1f} %" for i in order)
