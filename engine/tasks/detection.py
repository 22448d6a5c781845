"""Detection of objects: boxes, and with Mask R-CNN their masks."""

from functools import partial
from typing import Any, Optional, Sequence

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2
from yacs.config import CfgNode

from data.batches import Examples, collate_lists
from data.joint import JointTransform
from data.loader import AnyDataset, dataset_of
from data.object_targets import objects_to_learn, objects_to_measure
from data.sources.coco import CocoSource
from models.detection import DETECTORS, create_detector
from utils.conflicts import mixes
from utils.errors import ConfigError, DataError, did_you_mean
from utils.image_size import Size
from utils.metrics import NUM_IMAGES, Metric
from utils.pictures import colour_of, draw_boxes, fitted, grid, pixels_of

from ..evaluation.average_precision import FIGURES
from ..evaluation.detections import ClosingDetectionEvaluator, DetectionEvaluator
from ..setup.dense_model import create_dense_model
from .base import Purpose
from .distill import Distillation

TITLES = ("AP", "AP at IoU 0.5", "AP at IoU 0.75", "AP of small objects", "AP of medium objects", "AP of large objects")
SHOWN, SIDE = 8, 256  # images of a preview, and px of each


def metrics_of(kind: str) -> tuple[Metric, ...]:
    return tuple(Metric(f"{kind}_{name}", f"{kind} {title}, %") for name, title in zip(FIGURES, TITLES))


class Detection:
    """Learns boxes of COCO-like annotations, and masks with a head that has them; measures AP of both."""

    primary = metrics_of("box")[0]
    figures = metrics_of("box") + metrics_of("mask") + (NUM_IMAGES,)

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg
        self._require_settings()
        self.with_masks = cfg.MODEL.HEAD == "mask_rcnn"
        self.kinds = ("box", "mask") if self.with_masks else ("box",)
        self.figures = tuple(metric for kind in self.kinds for metric in metrics_of(kind)) + (NUM_IMAGES,)

    @property
    def eval_size(self) -> int:
        return self.cfg.DATA.IMG_SIZE

    def _require_settings(self) -> None:
        cfg = self.cfg
        if cfg.MODEL.HEAD not in DETECTORS:
            raise ConfigError(f"MODEL.HEAD is {cfg.MODEL.HEAD!r}; {did_you_mean(cfg.MODEL.HEAD, DETECTORS)}")
        if cfg.DATA.DATASET.partition("/")[0] != "coco":
            raise ConfigError(f"DATA.DATASET is {cfg.DATA.DATASET!r}; TASK detection reads coco")
        if not isinstance(cfg.DATA.IMG_SIZE, int):
            raise ConfigError(
                f"DATA.IMG_SIZE is {cfg.DATA.IMG_SIZE}; to TASK detection it is an image's shorter side, one number"
            )
        smallest, size, largest = cfg.DET.MIN_SIZE, cfg.DATA.IMG_SIZE, cfg.DET.MAX_SIZE
        if not (smallest or size) <= size <= largest:
            raise ConfigError(
                f"DET.MIN_SIZE {smallest}, DATA.IMG_SIZE {size}, DET.MAX_SIZE {largest}: are shorter sides and the longest one; "
                "let them rise"
            )
        for key, is_set in (
            ("AUG.MIXUP", mixes(cfg)),
            ("AUG.SPLITS", cfg.AUG.SPLITS > 0),
            ("AUG.REPEATS", cfg.AUG.REPEATS > 1),
            ("TRAIN.IMG_SIZES", bool(cfg.TRAIN.IMG_SIZES)),
            ("TRAIN.COMPILE", bool(cfg.TRAIN.COMPILE)),
            ("TEST.IMG_SIZE", cfg.TEST.IMG_SIZE not in (0, size)),
            ("TEST.CROPS", cfg.TEST.CROPS > 1),
            ("TEST.FLIP", cfg.TEST.FLIP),
            ("DISTILL.TEACHER", bool(cfg.DISTILL.TEACHER)),
        ):
            if is_set:
                remedy = "set AUG.MIXUP and AUG.CUTMIX to 0" if key == "AUG.MIXUP" else "leave it at its default"
                raise ConfigError(f"{key}: TASK detection does not have it; {remedy}")

    # Data

    def train_dataset(self) -> AnyDataset:
        cfg = self.cfg
        on_image = partial(objects_to_learn, with_masks=self.with_masks)
        transform = JointTransform(v2.RandomHorizontalFlip(cfg.AUG.HFLIP), on_image, cfg.DATA.EXIF)
        source = self._source(cfg.DATA.TRAIN_SPLIT, transform, None, cfg.DET.EMPTY_IMAGES)
        if cfg.MODEL.NUM_CLASSES not in (0, len(source.classes)):
            raise DataError(
                f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {cfg.DATA.TRAIN_SPLIT} has {len(source.classes)} categories; correct "
                "it, or set it to 0 to take the data set's"
            )
        return dataset_of(source, transform, cfg.DATA.ON_ERROR, collate=collate_lists)

    def val_dataset(self, classes: Optional[Sequence[str]] = None) -> AnyDataset:
        cfg = self.cfg
        on_image = partial(objects_to_measure, with_masks=self.with_masks)
        transform = JointTransform(_unmoved, on_image, cfg.DATA.EXIF)
        source = self._source(cfg.DATA.VAL_SPLIT, transform, classes, True)
        return dataset_of(source, transform, cfg.DATA.ON_ERROR, collate=collate_lists)

    def _source(
        self, split: str, transform: JointTransform, classes: Optional[Sequence[str]], with_empty: bool
    ) -> CocoSource:
        data = self.cfg.DATA
        if not data.DATA_PATH:
            raise DataError(
                "DATA.DATA_PATH: is not set; give --data-path, the folder that holds annotations/ and the images' folders"
            )
        return CocoSource.open(data.DATASET, data.DATA_PATH, split, transform.decode, classes, with_empty)

    # Model

    def build_model(self, num_classes: int) -> nn.Module:
        cfg = self.cfg
        sizes = tuple(range(cfg.DET.MIN_SIZE or cfg.DATA.IMG_SIZE, cfg.DATA.IMG_SIZE + 1))
        self.num_classes = num_classes
        plain: dict[str, Any] = {
            "image_mean": (0.0, 0.0, 0.0),
            "image_std": (1.0, 1.0, 1.0),
        }  # batches are normalised already
        create = partial(create_detector, num_classes=num_classes, min_size=sizes, max_size=cfg.DET.MAX_SIZE, **plain)
        return create_dense_model(cfg, DETECTORS, create)

    # Learning

    def prepare_training(self, num_classes: int, distillation: Optional[Distillation] = None) -> None:
        """The model brings its losses."""
        self.num_classes = num_classes

    def loss(self, model: nn.Module, batch: Examples) -> dict[str, torch.Tensor]:
        """The sum of the model's losses, and each of them."""
        losses = model(batch.images, batch.targets)
        return {"loss": torch.stack([value.float() for value in losses.values()]).sum(), **losses}

    def evaluator(self, purpose: Purpose, device: torch.device) -> DetectionEvaluator:
        cfg = self.cfg
        settings = (self.num_classes, self.kinds, cfg.DET.AP_BY)
        if purpose == "closing":
            return ClosingDetectionEvaluator(*settings, cfg.DATA.MEAN, cfg.DATA.STD)
        return DetectionEvaluator(*settings)

    def resized(self, batch: Examples, size: Size) -> Examples:
        """The batch itself: the model resizes images and what lies on them."""
        return batch

    def evaluation_like(self, batch: Examples) -> Examples:
        targets = [
            {"image_id": n, "size": tuple(image.shape[1:]), "objects": []} for n, image in enumerate(batch.images)
        ]
        return batch._replace(targets=targets)

    def preview(self, batch: Examples, classes: Sequence[str]) -> np.ndarray:
        """A picture of a batch's first images with their boxes, each in its class' colour."""
        tiles, side = [], min(SIDE, max(max(image.shape[1:]) for image in batch.images))
        for image, target in zip(batch.images[:SHOWN], batch.targets):
            labels = target["labels"].tolist()
            picture, scale = fitted(pixels_of(image, self.cfg.DATA.MEAN, self.cfg.DATA.STD), side)
            boxes = (target["boxes"] * scale).tolist()
            drawn = draw_boxes(picture, boxes, list(map(colour_of, labels)), [classes[label] for label in labels])
            tile = np.full((side, side, 3), 255, np.uint8)
            tile[: drawn.shape[0], : drawn.shape[1]] = drawn
            tiles.append(tile)
        return grid(tiles, batch.keys[: len(tiles)], SIDE, columns=4)


def _unmoved(image: Any, target: Any) -> tuple[Any, Any]:
    return image, target
