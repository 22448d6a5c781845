"""What a detector got wrong in an image: objects that it missed, and detections of nothing."""

import base64
from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

from utils.pictures import draw_boxes, encode_jpeg, fitted

SCORE, IOU = 0.3, 0.5  # from which a detection counts, and hits an object
MISSED, WRONG, RIGHT = (255, 200, 0), (230, 30, 30), (30, 170, 60)  # RGB
SIDE = 480  # px of a picture's longer side


@dataclass(frozen=True)
class DetectionErrors:
    """Of one image."""

    missed: int
    wrong: int
    objects: int
    key: str  # which image, see `data.sample`
    size: tuple[int, int]  # width and height of the picture
    jpeg: bytes  # with the boxes drawn on it

    @property
    def place(self) -> tuple[int, str]:
        """Sorts by falling number of errors; of equal ones by key, in which no process and no batch has a part."""
        return -self.missed - self.wrong, self.key


def matched(
    found: dict[str, torch.Tensor], boxes: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which detections hit an object that none with a higher score has hit, and which objects are hit.

    Args:
        found: `boxes` (N, 4), `labels` (N,), the highest score first.
        boxes, labels: of the objects, (M, 4) and (M,).

    Returns:
        (N,) and (M,), bool.
    """
    right = torch.zeros(len(found["boxes"]), dtype=torch.bool)
    hit = torch.zeros(len(boxes), dtype=torch.bool)
    overlaps = box_iou(found["boxes"], boxes) * (found["labels"][:, None] == labels)
    for position, row in enumerate(overlaps):
        free = row.masked_fill(hit, 0.0)
        if len(free) and free.max() >= IOU:
            right[position] = True
            hit[free.argmax()] = True
    return right, hit


def errors_in(
    pixels: np.ndarray, found: dict[str, torch.Tensor], objects: Sequence[dict[str, Any]], key: str
) -> DetectionErrors:
    """What is wrong in an image; crowds are no objects, and a detection on one is wrong.

    Args:
        pixels: RGB (height, width, 3), uint8.
        found: `boxes`, `labels`, `scores` on the CPU, the highest score first.
        objects: see `data.object_targets.objects_to_measure`.
    """
    sure = found["scores"] >= SCORE
    found = {name: found[name][sure] for name in ("boxes", "labels")}
    known = [entry for entry in objects if not entry["iscrowd"]]
    boxes = torch.tensor([entry["bbox"] for entry in known], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    right, hit = matched(found, boxes, torch.tensor([entry["label"] for entry in known], dtype=torch.int64))
    drawn = [(box, MISSED) for box in boxes[~hit].tolist()]
    drawn += [(box, RIGHT if good else WRONG) for box, good in zip(found["boxes"].tolist(), right.tolist())]
    picture, scale = fitted(pixels, SIDE)
    picture = draw_boxes(
        picture, [[value * scale for value in box] for box, _ in drawn], [colour for _, colour in drawn]
    )
    size = picture.shape[1], picture.shape[0]
    return DetectionErrors(int((~hit).sum()), int((~right).sum()), len(known), key, size, encode_jpeg(picture))


def worst_images(errors: Sequence[DetectionErrors]) -> dict[str, Any]:
    """A section of a report of the images with the most errors."""
    pictures = [
        {
            "size": list(one.size),
            "jpeg": base64.b64encode(one.jpeg).decode(),
            "key": one.key,
            "title": f"{one.missed} missed, {one.wrong} wrong",
            "notes": [f"{one.objects} objects"],
        }
        for one in errors
    ]
    text = (
        f"The validation images with the most errors at a score of {SCORE}: objects that were missed (yellow), detections of another class "
        f"or of nothing (red); right ones, by an IoU of {IOU}, are green."
    )
    return {"title": "Worst images", "text": text, "pictures": pictures}
