"""Semantic segmentation: a class for each pixel."""

from functools import partial
from typing import Any, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import default_collate
from yacs.config import CfgNode

from data.batches import Examples, collate_lists, collate_pictures, resize_examples
from data.class_list import read_class_list
from data.joint import JointTransform
from data.loader import AnyDataset, dataset_of
from data.masks import IGNORED, MaskReader
from data.segmentation_transforms import AugmentMasked, SegmentationAugmentation, fitted_size, unchanged
from data.sources.mask_folders import MaskSource, open_masks
from models.dense import SEGMENTERS, create_segmenter
from models.dense.segmenter import Segmenter
from utils.config import value_of
from utils.errors import ConfigError, DataError
from utils.image_size import Size, frozen, height_and_width, size_text
from utils.label_colours import over
from utils.pictures import grid

from ..evaluation.confusion_matrix import FIGURES, MIOU
from ..evaluation.dense_inference import DenseInference
from ..evaluation.segmentation_evaluators import ClosingSegmentationEvaluator, SegmentationEvaluator
from ..setup.dense_model import create_dense_model
from .base import Purpose
from .distill import Distillation

UNUSED = {  # what other tasks do, and the value that leaves it out
    "MODEL.LABEL_SMOOTHING": 0.0, "AUG.MIXUP": 0.0, "AUG.CUTMIX": 0.0, "AUG.CUTMIX_MINMAX": [], "AUG.SPLITS": 0,
    "AUG.AUTO_AUGMENT": "none", "AUG.COLOR_JITTER": 0.0, "AUG.REPROB": 0.0, "TRAIN.LOSS": "ce", "TEST.CROPS": 1,
    "DATA.BACKEND": "pil", "DISTILL.TEACHER": "",
}  # fmt: skip
PREVIEWED = 32  # images in a picture of a batch
ASPECT = 4 / 3  # of an evaluation's image in the rehearsal


class Segmentation:
    """Gives each pixel a class: cross-entropy, with an auxiliary head's where the model has one; mIoU, mAcc and aAcc."""

    primary = MIOU
    figures = FIGURES

    def __init__(self, cfg: CfgNode):
        used = [f"{key} {value_of(cfg, key)}" for key, off in UNUSED.items() if value_of(cfg, key) != off]
        if used:
            values = ", ".join(f"{key} {UNUSED[key]}" for key in (one.partition(" ")[0] for one in used))
            raise ConfigError(
                f"TASK segmentation does not use {', '.join(used)}; set {values}, as configs/segmentation/base.yaml does"
            )
        if cfg.SEG.STRIDE > min(height_and_width(cfg.DATA.IMG_SIZE)):
            raise ConfigError(
                f"SEG.STRIDE is {cfg.SEG.STRIDE}, more than the windows' DATA.IMG_SIZE {size_text(cfg.DATA.IMG_SIZE)}, so that pixels would be "
                "left out; use a smaller one, or 0"
            )
        self.cfg = cfg
        self.auxiliary_weight = 0.0
        self.num_classes = 0

    @property
    def eval_size(self) -> Size:
        """Of windows; an image seen whole has any."""
        return self.cfg.DATA.IMG_SIZE

    # Data

    def train_dataset(self) -> AnyDataset:
        """The augmented training images with masks (*crop), int16.

        Raises:
            ConfigError: unknown DATA.DATASET.
            DataError: the data set is missing or incomplete, or has not MODEL.NUM_CLASSES classes.
        """
        cfg = self.cfg
        classes = self._classes()
        transform = self._train_transform(cfg.DATA.IMG_SIZE, len(classes))
        sized = {frozen(size): self._train_transform(size, len(classes)) for _, size in cfg.TRAIN.IMG_SIZES}
        source = self._source(cfg.DATA.TRAIN_SPLIT, classes, transform)
        collate = partial(collate_pictures, collate_targets=default_collate)
        return dataset_of(source, transform, cfg.DATA.ON_ERROR, sized, collate)

    def _train_transform(self, crop: Size, num_classes: int) -> JointTransform:
        cfg = self.cfg
        settings = SegmentationAugmentation(
            crop=height_and_width(crop),
            scale=tuple(cfg.SEG.SCALE),
            ratio_range=tuple(cfg.SEG.RATIO_RANGE),
            cat_max_ratio=cfg.SEG.CAT_MAX_RATIO,
            hflip=cfg.AUG.HFLIP,
            photometric=cfg.SEG.PHOTOMETRIC,
            mean=cfg.DATA.MEAN,
            interpolation=cfg.DATA.INTERPOLATION,
        )
        return JointTransform(AugmentMasked(settings), self._masks(num_classes), cfg.DATA.EXIF)

    def val_dataset(self, classes: Optional[Sequence[str]] = None) -> AnyDataset:
        """The validation images in their own sizes, with masks of these; `classes` are those the model knows, in label order.

        Raises:
            DataError: as `train_dataset`, or the classes are other ones.
        """
        cfg = self.cfg
        own = self._classes()
        if classes is not None and list(classes) != own:
            where = next((i for i, (a, b) in enumerate(zip(classes, own)) if a != b), min(len(classes), len(own)))
            raise DataError(
                f"SEG.CLASSES: names {len(own)} classes, the model knows {len(classes)}, and from the {where + 1}. on they differ; "
                "give the list that it was trained with"
            )
        transform = JointTransform(unchanged, self._masks(len(own)), cfg.DATA.EXIF)
        source = self._source(cfg.DATA.VAL_SPLIT, own, transform)
        return dataset_of(source, transform, cfg.DATA.ON_ERROR, collate=collate_lists)

    def _classes(self) -> list[str]:
        classes, asked = read_class_list(self.cfg.SEG.CLASSES, "SEG.CLASSES"), self.cfg.MODEL.NUM_CLASSES
        if asked not in (0, len(classes)):
            raise DataError(
                f"MODEL.NUM_CLASSES is {asked}, but SEG.CLASSES {self.cfg.SEG.CLASSES} names {len(classes)}; correct it, or set it "
                "to 0 to take the list's"
            )
        return classes

    def _masks(self, num_classes: int) -> MaskReader:
        cfg = self.cfg
        return MaskReader(num_classes, cfg.SEG.IGNORE, cfg.SEG.REDUCE_ZERO_LABEL, cfg.DATA.EXIF)

    def _source(self, split: str, classes: Sequence[str], transform: JointTransform) -> MaskSource:
        data = self.cfg.DATA
        return open_masks(data.DATASET, split, data.DATA_PATH, classes, transform.decode, data.TIMEOUT)

    # Model

    def build_model(self, num_classes: int) -> nn.Module:
        """MODEL.HEAD on MODEL.NAME, for so many classes.

        Raises:
            ConfigError: unknown names, or values that the backbone refuses.
        """

        def create(head: str, backbone: str, **arguments: Any) -> Segmenter:
            return create_segmenter(head, backbone, num_classes, **arguments)

        model = create_dense_model(self.cfg, SEGMENTERS, create)
        self.auxiliary_weight, self.num_classes = model.auxiliary_weight, num_classes
        return model

    # Learning

    def prepare_training(self, num_classes: int, distillation: Optional[Distillation] = None) -> None:
        """Nothing: the loss has no parts that are made once, and DISTILL is refused."""

    def loss(self, model: nn.Module, batch: Examples) -> dict[str, torch.Tensor]:
        """The mean over a batch of images (B, 3, H, W) and masks (B, H, W); of two heads the parts besides."""
        outputs = model(batch.images)
        if not isinstance(outputs, tuple):
            return {"loss": pixel_loss(outputs, batch.targets)}
        main, auxiliary = (pixel_loss(logits, batch.targets) for logits in outputs)
        return {"loss": main + self.auxiliary_weight * auxiliary, "main": main, "auxiliary": auxiliary}

    def evaluator(self, purpose: Purpose, device: torch.device) -> SegmentationEvaluator:
        cfg = self.cfg
        if purpose == "closing":
            colours = cfg.DATA.MEAN, cfg.DATA.STD
            return ClosingSegmentationEvaluator(self.num_classes, device, self.inference(), *colours)
        return SegmentationEvaluator(self.num_classes, device, self.inference())

    def inference(self) -> DenseInference:
        """How the model sees an image of any size, as SEG and TEST say."""
        cfg = self.cfg
        if cfg.SEG.MODE != "slide":
            return DenseInference(cfg.SEG.SCALE, cfg.SEG.SCALES, cfg.TEST.FLIP)
        window = cfg.DATA.IMG_SIZE
        down, across = (cfg.SEG.STRIDE or -(-2 * side // 3) for side in height_and_width(window))
        stride = down if isinstance(window, int) else (down, across)
        return DenseInference(cfg.SEG.SCALE, cfg.SEG.SCALES, cfg.TEST.FLIP, window, stride)

    def resized(self, batch: Examples, size: Size) -> Examples:
        masks = F.interpolate(batch.targets[:, None].float(), height_and_width(size))[:, 0].to(batch.targets.dtype)
        return resize_examples(batch, size)._replace(targets=masks)

    def evaluation_like(self, batch: Examples) -> Examples:
        """Images as evaluation usually has them: as large as SEG.SCALE, and 4 px wide for 3 px high."""
        size = fitted_size(300, round(300 * ASPECT), self.cfg.SEG.SCALE)
        images = F.interpolate(batch.tensor, size)
        masks = F.interpolate(batch.targets[:, None].float(), size)[:, 0].to(batch.targets.dtype)
        return batch._replace(images=list(images), targets=list(masks))

    def preview(self, batch: Examples, classes: Sequence[str]) -> np.ndarray:
        """A picture of a batch's first images as the model gets them, under their masks' colours."""
        images, masks = batch.tensor[:PREVIEWED].cpu().float(), batch.targets[:PREVIEWED].cpu().numpy()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.cfg.DATA.MEAN, self.cfg.DATA.STD))
        pixels = ((images * std + mean).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
        pictures = [over(one, labels, len(classes)) for one, labels in zip(pixels, masks)]
        captions = [", ".join(classes[label] for label in np.unique(labels) if label >= 0) for labels in masks]
        return grid(pictures, captions, max(96, *pixels.shape[1:3]), columns=4)


def pixel_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (B, C, H, W) and labels (B, H, W), the mean over all pixels.

    Ignored ones count as 0, as in mmseg, whose recipes these are: a crop without a class gives 0, and the mean over
    micro-batches and processes is that over their pixels.
    """
    losses = F.cross_entropy(logits.float(), masks.long(), ignore_index=IGNORED, reduction="sum")
    return losses / masks.numel()
