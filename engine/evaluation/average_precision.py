"""Average precision of detections as COCO defines it, by pycocotools or by faster-coco-eval."""

import contextlib
import io
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from utils.cli import importing
from utils.errors import DataError

# Of COCO's summary the first six: over IoU 0.5 to 0.95, at 0.5, at 0.75; of small, middle-sized and large objects.
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
KINDS = {"box": "bbox", "mask": "segm"}  # our names and COCO's


class Detected(NamedTuple):
    """What is in an image, and what was detected there, in px of the image; plain values."""

    image_id: int
    size: tuple[int, int]  # height, width
    objects: list[dict[str, Any]]  # see `data.object_targets.objects_to_measure`
    boxes: list[list[float]]  # N times x1, y1, x2, y2
    labels: list[int]
    scores: list[float]
    masks: list[dict[str, Any]]  # run lengths of each; empty where there are none


class Precision(NamedTuple):
    """Of all images."""

    figures: dict[str, float]  # percent, such as box_ap; without those of sizes that no object has
    by_class: dict[str, list[float]]  # 'box' and 'mask': AP of each label in percent, NaN where it has no object


def average_precision(images: Sequence[Detected], num_classes: int, kinds: Sequence[str], by: str) -> Precision:
    """AP over all images, in any order.

    Args:
        kinds: 'box', 'mask' or both, the first one first.
        by: 'pycocotools' or 'faster_coco_eval'.

    Raises:
        DataError: an image stands twice; or there is no object to be detected.
        ConfigError: the package is not there.
    """
    images = sorted(images, key=lambda image: image.image_id)
    ids = [image.image_id for image in images]
    twice = next((number for number, after in zip(ids, ids[1:]) if number == after), None)
    if twice is not None:
        raise DataError(f"image {twice}: was evaluated twice; give each image of the annotations an id of its own")
    figures: dict[str, float] = {}
    by_class = {}
    for kind in kinds:
        evaluation = _evaluated(images, num_classes, kind, by)
        values = dict(zip((f"{kind}_{name}" for name in FIGURES), evaluation.stats))
        if values[f"{kind}_ap"] < 0:
            raise DataError(f"the evaluated images have no object with a {kind}; give others to measure AP on")
        figures |= {name: 100 * float(value) for name, value in values.items() if value >= 0}
        by_class[kind] = _of_classes(evaluation.eval["precision"])
    return Precision(figures, by_class)


def _evaluated(images: Sequence[Detected], num_classes: int, kind: str, by: str) -> Any:
    make_set, evaluation_of = _package(by)
    there = [
        _object(known, image.image_id, kind)
        for image in images
        for known in image.objects
        if kind == "box" or known["mask"] is not None
    ]
    found = [entry for image in images for entry in _detections(image, kind)]
    with contextlib.redirect_stdout(io.StringIO()):  # they print what they do
        sets = []
        for entries in (there, found):
            annotations = [
                {**entry, "id": number} for number, entry in enumerate(entries, start=1)
            ]  # 0 stands for no match
            content = {
                "images": [{"id": image.image_id, "height": image.size[0], "width": image.size[1]} for image in images],
                "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
                "annotations": annotations,
            }
            one = make_set()
            one.dataset = content
            one.createIndex()
            sets.append(one)
        evaluation = evaluation_of(*sets, KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _package(by: str) -> tuple[Callable, Callable]:
    if by == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    with importing("faster-coco-eval, or set DET.AP_BY to pycocotools"):
        from faster_coco_eval import COCO, COCOeval_faster
    return COCO, COCOeval_faster


def _object(known: dict[str, Any], image_id: int, kind: str) -> dict[str, Any]:
    """As COCO's annotations."""
    entry = {
        "image_id": image_id,
        "category_id": known["label"],
        **{key: known[key] for key in ("bbox", "area", "iscrowd")},
    }
    return {**entry, "segmentation": known["mask"]} if kind == "mask" else entry


def _detections(image: Detected, kind: str) -> list[dict[str, Any]]:
    """As COCO's annotations: x, y, width, height; the area, which says what is small, of the box or of the mask."""
    entries = []
    for position, (x1, y1, x2, y2) in enumerate(image.boxes):
        entry = {
            "image_id": image.image_id,
            "category_id": image.labels[position],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "score": image.scores[position],
            "iscrowd": 0,
        }
        if kind == "mask":
            entry["segmentation"] = image.masks[position]
            entry["area"] = float(coco_mask.area(image.masks[position]))
        entries.append(entry)
    return entries


def _of_classes(precision: np.ndarray) -> list[float]:
    """Of precisions by (IoU, recall, class, size, number of detections): -1 where a class has no object."""
    each = np.asarray(precision)[:, :, :, 0, -1]
    return [100 * float(values.mean()) if (values > -1).all() else float("nan") for values in np.moveaxis(each, 2, 0)]
