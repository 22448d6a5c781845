"""What a model gets wrong: the images that it is most wrong about, and which classes it takes for which.

Evaluates the checkpoint on the validation images as main.py --eval does, each once, and writes mistakes.png and mistakes.csv
(the images with the largest loss that are wrong), confusion.png and confusion.csv (images by class and predicted class).
Images that cannot be read are left out and listed.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from engine.evaluation.loop import describe
from engine.evaluation.mistakes import Errors, Mistakes
from engine.evaluation.sets.tables import meanings, write_csv
from engine.inference.examination import Examination
from engine.inference.trained import Trained
from engine.tasks import create_task
from engine.tasks.base import ClassTask
from utils.cli import whole_number
from utils.config import config_from, to_dict
from utils.device import select_device
from utils.errors import ConfigError
from utils.pictures import grid, titled

from ..collecting_log import CollectingLog
from . import inputs
from .confusion import confusion_picture
from .panels import fit

SIDE = 160  # px of an image
COLUMNS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inputs.add_model_arguments(parser)
    parser.add_argument(
        "--data-path", metavar="DIR", help="folder that holds the validation images (default: the config's)"
    )
    parser.add_argument(
        "--number", type=whole_number(1, 1000), default=24, metavar="N", help="images in the sheet (default: 24)"
    )
    parser.add_argument("--batch-size", type=whole_number(1), metavar="N", help="(default: the config's)")
    parser.add_argument(
        "--workers", type=whole_number(0), metavar="N", help="processes that load images (default: the config's)"
    )
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")


def make(args: argparse.Namespace) -> list[str]:
    """Returns what is to be said of the images that could not be read."""
    trained = inputs.load_model(args)
    metrics, errors, unreadable = evaluated(trained, args)
    text = f"{trained.cfg.MODEL.NAME}, {trained.weights} weights of {trained.path}: {describe({'validation': metrics})}"
    print(text, flush=True)
    with inputs.Album(args.output or args.checkpoint.parent / "look") as album:
        write_csv(album.folder / "mistakes.csv", ["key", "target", "predicted", "probability", "loss"], (
            [m.key, trained.classes[m.target], trained.classes[m.predicted], f"{m.probability:.6f}", f"{m.loss:.6f}"] for m in errors.worst
        ))  # fmt: skip
        write_csv(
            album.folder / "confusion.csv",
            ["class", "name", "predicted", "predicted_name", "images"],
            pairs_of(errors, trained.classes),
        )
        album.add("mistakes", "mistakes", titled(sheet(errors, trained.names), f"{text}\n{heading(errors)}"))
        album.add(
            "confusion", "confusion", confusion_picture(errors.confusion(len(trained.classes)), trained.names, text)
        )
    return unreadable


def evaluated(trained: Trained, args: argparse.Namespace) -> tuple[dict[str, Any], Errors, list[str]]:
    """The metrics of the validation images, what was wrong, and what could not be read.

    Raises:
        ConfigError, DataError: the data set cannot be used, has other classes, or no image could be read.
    """
    config = to_dict(trained.cfg)
    asked = {
        "DATA_PATH": args.data_path,
        "BATCH_SIZE": args.batch_size,
        "NUM_WORKERS": args.workers,
        "ON_ERROR": "skip",
    }
    config["DATA"] |= {key: value for key, value in asked.items() if value is not None}
    cfg = config_from(config, "command line")
    task, device, log = create_task(cfg), select_device(args.device, local_rank=0), CollectingLog()
    if not isinstance(task, ClassTask):
        raise ConfigError(
            f"mistakes: are classes taken for others, which TASK {cfg.TASK} does not have; look at the run's report.html"
        )
    dataset = task.val_dataset(trained.classes)
    examination = Examination(cfg, trained.model, device, log)
    mistakes = Mistakes(device, cfg.DATA.MEAN, cfg.DATA.STD, args.number)
    metrics = examination.run(examination.loader(dataset), task.set_evaluator(mistakes))
    return metrics, mistakes.gather(examination.peers), log.unreadable


def pairs_of(errors: Errors, classes: list[str]) -> list[list[Any]]:
    """Images by class and predicted class, in label order, right ones too."""
    told = meanings(classes)
    return [[classes[t], told[t], classes[p], told[p], images] for (t, p), images in sorted(errors.pairs.items())]


def heading(errors: Errors) -> str:
    wrong = sum(images for (target, predicted), images in errors.pairs.items() if target != predicted)
    if not wrong:
        return "No image is wrong."
    shown = f"the {len(errors.worst)} with the largest loss" if len(errors.worst) < wrong else "by falling loss"
    return f"{wrong} image{'s are' if wrong > 1 else ' is'} wrong; {shown}: class -> prediction, its probability; loss, file"


def sheet(errors: Errors, names: list[str]) -> np.ndarray:
    """The worst images, RGB (height, width, 3); empty if there are none."""
    blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
    pictures = [fit(mistake.pixels, SIDE) for mistake in errors.worst] or [blank]
    captions = [
        f"{names[m.target]} ->\n{names[m.predicted]} {100 * m.probability:.0f} %\nloss {m.loss:.2f}, {Path(m.key).name}"
        for m in errors.worst
    ] or [""]
    pictures += [blank] * (COLUMNS - len(pictures))  # room for the title
    captions += [""] * (COLUMNS - len(captions))
    return grid(pictures, captions, SIDE, COLUMNS)
