"""Boxes and masks in images, by a detector."""

import argparse
import json
import os
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import numpy as np
import torch

from data.object_masks import encode_masks
from engine.evaluation.detections import MASK_FROM
from engine.inference.trained import Trained
from engine.setup.precision import create_precision
from utils.errors import ConfigError, printable
from utils.files import atomic_write
from utils.pictures import colour_of, draw_boxes, draw_masks, encode_jpeg

from .whole_images import as_images, make_folder, open_model, pictures, require_flags

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
    require_flags(args, "detection", OTHERS)
    if not args.output and not args.json:
        raise ConfigError(
            "--output: is not given; give a folder for pictures with boxes, or --json a file for COCO's annotations"
        )
    trained, device = open_model(args)
    folder = Path(args.output) if args.output else None
    if folder:
        make_folder(folder)
    say(f"{args.checkpoint}: {trained.cfg.MODEL.HEAD} on {trained.cfg.MODEL.NAME}, {trained.weights} weights, {device}")
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": label, "name": name} for label, name in enumerate(trained.classes, start=1)]
    problems: list[str] = []
    for number, (path, name, pixels) in enumerate(pictures(paths, trained, problems), start=1):
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
    with create_precision(amp, "auto", device).autocast():
        (found,) = trained.model(as_images(pixels, trained, device))
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
