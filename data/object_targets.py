"""Annotated objects of an image, as a detector learns of them and as an evaluation measures by them."""

from typing import Any

import torch
from torchvision import tv_tensors

from utils.errors import DataError

from .object_masks import RunLengths, decode_masks, run_lengths_of

SMALLEST = 1.0  # px of a side of a box to learn from


def require_size(target: dict[str, Any], size: tuple[int, int]) -> None:
    """Raises DataError: the image's (height, width) is not what its annotations are of."""
    said = target["height"], target["width"]
    if said != size:
        raise DataError(
            f"image {target['image_id']}",
            f"has {size[1]} x {size[0]} px, its annotations are of {said[1]} x {said[0]}",
            "correct width and height in the annotations; an EXIF orientation turns images where DATA.EXIF is True",
        )


def objects_to_learn(target: dict[str, Any], size: tuple[int, int], with_masks: bool) -> dict[str, Any]:
    """Boxes, labels and masks, as torchvision's transforms move them.

    Left out are crowds; objects whose box, cut at the image's edge, has a side below one px; those with an area of 0 or
    less; and `with_masks` those without a mask. There may be none left.

    Args:
        target: see `data.sources.coco`.
        size: of the image, (height, width).

    Returns:
        `boxes` (N, 4), float32, x1, y1, x2, y2; `labels` (N,), int64; `masks` (N, height, width), uint8.
    """
    require_size(target, size)
    height, width = size
    boxes, labels = [], []
    masks: list[RunLengths] = []
    for entry in target["objects"]:
        x, y, w, h = entry["bbox"]
        box = [max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)]
        too_small = min(box[2] - box[0], box[3] - box[1]) < SMALLEST or entry.get("area", w * h) <= 0
        if entry.get("iscrowd") or too_small:
            continue
        mask = run_lengths_of(entry.get("segmentation"), size) if with_masks else None
        if with_masks and mask is None:
            continue
        boxes.append(box)
        labels.append(entry["label"])
        if mask is not None:
            masks.append(mask)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    found: dict[str, Any] = {
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }
    if with_masks:
        found["masks"] = tv_tensors.Mask(torch.from_numpy(decode_masks(masks, size)))
    return found


def objects_to_measure(target: dict[str, Any], size: tuple[int, int], with_masks: bool) -> dict[str, Any]:
    """All objects, as they are annotated, crowds too: `image_id`, `size` and `objects` with `label`, `bbox`, `area`, `iscrowd` and
    `with_masks` the `mask`, None if there is none that can be read.
    """
    require_size(target, size)
    objects = []
    for entry in target["objects"]:
        box = [float(value) for value in entry["bbox"]]
        known = {
            "label": entry["label"], "bbox": box, "area": float(entry.get("area", box[2] * box[3])),
            "iscrowd": int(bool(entry.get("iscrowd"))),
        }  # fmt: skip
        if with_masks:
            known["mask"] = run_lengths_of(entry.get("segmentation"), size)
        objects.append(known)
    return {"image_id": target["image_id"], "size": size, "objects": objects}
