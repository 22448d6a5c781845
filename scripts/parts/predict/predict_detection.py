"""Boxes and masks in images, by a detector."""

import argparse
import json
import os
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import numpy as np
import torch

from data.batches import Finish, Picture, collate_lists
from data.object_masks import encode_masks
from data.sample import Sample
from engine.evaluation.detections import MASK_FROM
from engine.inference.trained import Trained, load_trained
from engine.setup.model import place
from engine.setup.precision import create_precision
from utils.device import choose_arithmetic, select_device
from utils.errors import ConfigError, DataError, OutputError, printable
from utils.files import atomic_write, unwritable
from utils.pictures import colour_of, draw_boxes, draw_masks, encode_jpeg

from .predict_segmentation import names_of, read_picture

OTHERS = ("csv", "sheet", "fused", "img_size")  # flags of classification
SCORE = 0.3  # from which a detection is drawn and listed; the JSON has all

Found = dict[str, np.ndarray]


def predict(args: argparse.Namespace, paths: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Writes <name>_boxes.jpg of each image into --output, and all detections as COCO's annotations into --json.

    Args:
        say: takes a line of what else is to be known.

    Returns:
        A line for each file that has no image.

    Raises:
        ConfigError: neither --output nor --json, or flags that such a model has no use for.
        CheckpointError: the checkpoint cannot be used.
        OutputError: the folder or the file cannot be written to.
    """
    _require_flags(args)
    trained = load_trained(args.checkpoint, args.cfg, args.classes, args.weights)
    device = select_device(args.device, 0)
    choose_arithmetic(device, exact=True, deterministic=False, fixed_sizes=False)
    place(trained.model, device, trained.cfg.TRAIN.CHANNELS_LAST)
    folder = _folder(args.output)
    say(f"{args.checkpoint}: {trained.cfg.MODEL.HEAD} on {trained.cfg.MODEL.NAME}, {trained.weights} weights, {device}")
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": label, "name": name} for label, name in enumerate(trained.classes, start=1)]
    problems = []
    for number, (path, name) in enumerate(zip(paths, names_of(paths)), start=1):
        try:
            pixels = read_picture(path, trained)
        except (DataError, OutputError) as error:
            problems.append(str(error))
            continue
        found = detections_in(trained, pixels, device, args.amp)
        height, width = pixels.shape[:2]
        content["images"].append({"id": number, "file_name": os.fspath(path), "width": width, "height": height})
        content["annotations"] += annotations_of(found, number, len(content["annotations"]) + 1)
        if folder:
            with atomic_write(folder / f"{name}_boxes.jpg") as file:
                file.write(encode_jpeg(drawn(pixels, found, trained.classes)))
        if args.json != "-":
            print(f"{printable(path)}  {described(found, trained.classes)}", flush=True)
    _write(args.json, content)
    say(f"found {len(content['annotations'])} objects in {len(content['images'])} images")
    return problems


def _require_flags(args: argparse.Namespace) -> None:
    used = next((name for name in OTHERS if getattr(args, name)), "")
    if used or args.engine != "torch":
        flag = f"--{(used or 'engine').replace('_', '-')}"
        raise ConfigError(f"{flag}: is for classification, and the checkpoint is of TASK detection; leave it out")
    if not args.output and not args.json:
        raise ConfigError(
            "--output: is not given; give a folder for pictures with boxes, or --json a file for COCO's annotations"
        )


def _folder(output: Optional[str]) -> Optional[Path]:
    if not output:
        return None
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def _write(path: Optional[str], content: dict[str, Any]) -> None:
    text = json.dumps(content) + "\n"
    if path == "-":
        print(text, end="", flush=True)
    elif path:
        with atomic_write(path, flag="--json") as file:
            file.write(text.encode())


@torch.inference_mode()
def detections_in(trained: Trained, pixels: np.ndarray, device: torch.device, amp: bool = False) -> Found:
    """`boxes` (N, 4), `labels`, `scores` (N,) and, of a model that has them, `masks` (N, H, W) of a picture (H, W, 3), uint8."""
    data = trained.cfg.DATA
    batch = Finish(data.MEAN, data.STD, device)(collate_lists([Sample(Picture(pixels), 0)]))
    with create_precision(amp, "auto", device).autocast():
        (found,) = trained.model(batch.images)
    arrays = {name: values.float().cpu().numpy() for name, values in found.items()}
    arrays["labels"] = arrays["labels"].astype(int)
    if "masks" in arrays:
        arrays["masks"] = arrays["masks"][:, 0] > MASK_FROM
    return arrays


def annotations_of(found: Found, image_id: int, first: int) -> list[dict[str, Any]]:
    """COCO's annotations with scores, their ids from `first` on; category ids are labels from 1 on."""
    annotations = []
    lengths = encode_masks(found["masks"]) if "masks" in found else []
    for i, (x1, y1, x2, y2) in enumerate(found["boxes"].tolist()):
        entry = {
            "id": first + i, "image_id": image_id, "category_id": int(found["labels"][i]) + 1, "score": float(found["scores"][i]),
            "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0,
        }  # fmt: skip
        if lengths:
            entry["segmentation"] = {"size": list(lengths[i]["size"]), "counts": lengths[i]["counts"].decode()}
            entry["area"] = int(found["masks"][i].sum())
        annotations.append(entry)
    return annotations


def drawn(pixels: np.ndarray, found: Found, classes: Sequence[str]) -> np.ndarray:
    """The picture with the detections that are sure enough, each class in its colour."""
    sure = found["scores"] >= SCORE
    labels, scores = found["labels"][sure], found["scores"][sure]
    colours = [colour_of(label) for label in labels.tolist()]
    if "masks" in found:
        pixels = draw_masks(pixels, found["masks"][sure], colours)
    captions = [f"{classes[label]} {score:.2f}" for label, score in zip(labels.tolist(), scores.tolist())]
    return draw_boxes(pixels, found["boxes"][sure].tolist(), colours, captions)


def described(found: Found, classes: Sequence[str]) -> str:
    """The classes that are sure enough, with how often they are there."""
    labels = found["labels"][found["scores"] >= SCORE].tolist()
    return ", ".join(f"{labels.count(label)} {printable(classes[label])}" for label in sorted(set(labels))) or "nothing"
