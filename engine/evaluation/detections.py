"""Evaluators of detection: each image once, alone in its batch, then AP of all images of all processes."""

from typing import Any, Callable, Optional, Sequence

import numpy as np
import torch

from data.batches import Examples
from data.object_masks import encode_masks
from utils.pictures import pixels_of
from utils.processes.collectives import computed_by_first
from utils.processes.peers import Peers

from .average_precision import Detected, Precision, average_precision
from .detection_errors import DetectionErrors, errors_in, worst_images

Found = dict[str, torch.Tensor]
MASK_FROM = 0.5  # probability from which a pixel is the object's


class DetectionEvaluator:
    """Gathers what is in the images beside what a model detects there.

    The model sees one image at a time: in a batch it would be padded to the largest, and attention sees the padding, so that figures
    would depend on which images go together.

    Args:
        num_classes: of the model.
        kinds: 'box', 'mask' or both.
        by: see `average_precision`.
    """

    def __init__(self, num_classes: int, kinds: Sequence[str], by: str):
        self.num_classes, self.kinds, self.by = num_classes, tuple(kinds), by
        self.images: list[Detected] = []
        self.precision: Optional[Precision] = None

    def step(self, model: Callable[[Any], Any], batch: Examples) -> None:
        for image, target, key in zip(batch.images, batch.targets, batch.keys):
            found = {name: values.cpu() for name, values in model([image])[0].items()}
            self.images.append(detected(found, target, with_masks="mask" in self.kinds))
            self.look(image, found, target, key)

    def look(self, image: torch.Tensor, found: Found, target: dict[str, Any], key: str) -> None:
        """Keeps more of an image than its figures are made of."""

    def compute(self) -> dict[str, Any]:
        def measured(images: list[Detected]) -> tuple[Precision, int]:
            return average_precision(images, self.num_classes, self.kinds, self.by), len(images)

        self.precision, count = computed_by_first(self.images, measured)
        return {**self.precision.figures, "num_images": count}


class ClosingDetectionEvaluator(DetectionEvaluator):
    """The same figures; and the images with the most errors, and the AP of each class.

    Args:
        mean, std: of the images' normalisation.
        most: images that are kept.
    """

    def __init__(
        self,
        num_classes: int,
        kinds: Sequence[str],
        by: str,
        mean: Sequence[float],
        std: Sequence[float],
        most: int = 12,
    ):
        super().__init__(num_classes, kinds, by)
        self.mean, self.std, self.most = mean, std, most
        self.worst: list[DetectionErrors] = []

    def look(self, image: torch.Tensor, found: Found, target: dict[str, Any], key: str) -> None:
        errors = errors_in(pixels_of(image, self.mean, self.std), found, target["objects"], key)
        self.worst = sorted([*self.worst, errors], key=lambda one: one.place)[: self.most]

    def gather(self, peers: Peers) -> None:
        gathered = [one for part in peers.gather(self.worst) for one in part]
        self.worst = sorted(gathered, key=lambda one: one.place)[: self.most]

    def sections(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        return [worst_images(self.worst), self._by_class(classes)]

    def _by_class(self, classes: Sequence[str]) -> dict[str, Any]:
        assert self.precision is not None  # `compute` comes first
        columns = self.precision.by_class
        rows = [
            [
                name,
                *("no objects" if np.isnan(values[label]) else f"{values[label]:.1f}" for values in columns.values()),
            ]
            for label, name in enumerate(classes)
        ]
        heads = [f"{kind} AP, %" for kind in columns]
        return {
            "title": "Classes",
            "text": "Average precision of each class.",
            "columns": ["class", *heads],
            "rows": rows,
        }


def detected(found: Found, target: dict[str, Any], with_masks: bool) -> Detected:
    """Plain values of what a model detects in an image, and of what is there."""
    masks = encode_masks((found["masks"][:, 0] > MASK_FROM).numpy()) if with_masks else []
    boxes, labels, scores = (found[name].tolist() for name in ("boxes", "labels", "scores"))
    return Detected(target["image_id"], tuple(target["size"]), target["objects"], boxes, labels, scores, masks)
