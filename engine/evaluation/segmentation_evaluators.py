"""Evaluators of segmentation: the pixels of each image, in the image's own size."""

import base64
import math
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import cv2
import numpy as np
import torch

from data.batches import Examples
from utils.label_colours import over
from utils.pictures import encode_jpeg
from utils.processes.peers import Peers

from .confusion_matrix import ConfusionMatrix, class_figures
from .dense_inference import DenseInference

WORST = 12  # images that a report shows
SIDE = 320  # px of their longer side at most


class SegmentationEvaluator:
    """Adds the classes that a model gives pixels to a confusion matrix, image by image: no figure depends on the batch.

    Args:
        num_classes: of a pixel.
        device: of the counts.
        inference: how the model sees an image.
    """

    def __init__(self, num_classes: int, device: torch.device, inference: DenseInference):
        self.confusion = ConfusionMatrix(num_classes, device)
        self.inference = inference

    def step(self, model: Callable[[Any], Any], batch: Examples) -> None:
        for image, labels, key in zip(batch.images, batch.targets, batch.keys, strict=True):
            predicted = self.inference.classes(model, image)
            counts = self.confusion.add(predicted, labels)
            self.look_at(image, labels, predicted, counts, key)

    def look_at(
        self, image: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor, counts: torch.Tensor, key: str
    ) -> None:
        """What else is done with an image (3, H, W), its labels and predicted classes (H, W) and its confusion (C, C)."""

    def compute(self) -> dict[str, Any]:
        return self.confusion.compute()


@dataclass(frozen=True)
class PoorImage:
    """An image whose pixels' classes were found badly."""

    miou: float  # percent, over the classes that are in it or were found in it
    accuracy: float  # percent of its pixels
    key: str
    picture: np.ndarray  # uint8 (h, 3 * w, 3): the image, its labels, what was predicted


class ClosingSegmentationEvaluator(SegmentationEvaluator):
    """The same figures; and those of each class, and the images with the lowest IoU.

    Args:
        mean, std: of the images' normalisation.
    """

    def __init__(
        self,
        num_classes: int,
        device: torch.device,
        inference: DenseInference,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__(num_classes, device, inference)
        self.mean, self.std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))
        self.worst: list[PoorImage] = []

    def look_at(
        self, image: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor, counts: torch.Tensor, key: str
    ) -> None:
        found = counts.cpu().numpy()
        if not found.sum():  # all of it is ignored
            return
        miou = 100 * float(np.nanmean(class_figures(found).iou))
        if len(self.worst) == WORST and _by_iou(self.worst[-1]) < (miou, key):
            return
        accuracy = 100 * float(np.trace(found) / found.sum())
        picture = self._picture(image, labels.cpu().numpy(), predicted.cpu().numpy())
        self.worst.append(PoorImage(miou, accuracy, key, picture))
        self._keep_the_worst()

    def _keep_the_worst(self) -> None:
        self.worst.sort(key=_by_iou)
        del self.worst[WORST:]

    def _picture(self, image: torch.Tensor, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        levels = ((image.float() * self.std + self.mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0)
        pixels, count = levels.cpu().numpy(), self.confusion.num_classes
        tiles = [pixels, over(pixels, labels, count), over(pixels, predicted, count)]
        factor = min(1.0, SIDE / max(labels.shape))
        height, width = (max(1, round(side * factor)) for side in labels.shape)
        return cv2.hconcat([cv2.resize(tile, (width, height), interpolation=cv2.INTER_AREA) for tile in tiles])

    def gather(self, peers: Peers) -> None:
        self.counts = self.confusion.gather()
        self.worst = [image for worst in peers.gather(self.worst) for image in worst]
        self._keep_the_worst()

    def sections(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        return [self._worst_images(), self._table_of_classes(classes)]

    def _worst_images(self) -> dict[str, Any]:
        pictures = [
            {
                "size": [image.picture.shape[1], image.picture.shape[0]],
                "jpeg": base64.b64encode(encode_jpeg(image.picture)).decode(),
                "key": image.key,
                "title": f"mIoU {image.miou:.1f} %",
                "notes": [f"{image.accuracy:.1f} % of the pixels"],
            }
            for image in self.worst
        ]
        text = (
            "The validation images with the lowest mean IoU over the classes that are in them or were found in them: the image, "
            "its mask, what was predicted. Ignored pixels are as in the image."
        )
        return {"title": "Worst images", "text": text, "pictures": pictures}

    def _table_of_classes(self, classes: Sequence[str]) -> dict[str, Any]:
        each = class_figures(self.counts)
        order = sorted(range(len(classes)), key=lambda i: (math.isnan(each.iou[i]), each.iou[i], i))
        rows = [[classes[i], *(_percent(values[i]) for values in (each.iou, each.accuracy, each.share))] for i in order]
        text = "All classes, by rising IoU; \u2013: no pixel of the class, and none taken for it."
        columns = ["class", "IoU, %", "accuracy, %", "share of the pixels, %"]
        return {"title": "Classes", "text": text, "columns": columns, "rows": rows}


def _by_iou(image: PoorImage) -> tuple[float, str]:
    """Sorts by rising IoU; of equal ones by key, in which no process has a part."""
    return image.miou, image.key


def _percent(value: float) -> str:
    return "\u2013" if math.isnan(value) else f"{100 * value:.2f}"
