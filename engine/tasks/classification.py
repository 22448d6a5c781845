"""Image classification."""

from typing import Any, BinaryIO, Callable, Optional, Sequence

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn
from yacs.config import CfgNode

from data.batches import Examples
from data.class_maps import read_class_map
from data.dataset import ImageDataset
from data.sources import open_source
from data.transforms import Transform, eval_transform, train_transform
from utils.config import to_dict
from utils.errors import ConfigError, DataError
from utils.metrics import ClassificationMetrics
from utils.pictures import montage

from ..model import create_model


class Classification:
    """Classifies images: mixup or cutmix, cross-entropy with label smoothing, top-1 and top-5 accuracy."""

    best_metric = "acc1"  # higher is better

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    @property
    def mixes(self) -> bool:
        return self.cfg.AUG.MIXUP > 0 or self.cfg.AUG.CUTMIX > 0 or bool(self.cfg.AUG.CUTMIX_MINMAX)

    # Data

    def train_dataset(self) -> ImageDataset:
        """The augmented training images.

        Raises:
            ConfigError: a batch size that cannot be trained with.
            DataError: the data set is missing, incomplete, or has not MODEL.NUM_CLASSES classes.
        """
        cfg = self.cfg
        if self.mixes and cfg.DATA.BATCH_SIZE % 2:
            raise ConfigError(
                f"DATA.BATCH_SIZE (--batch-size) is {cfg.DATA.BATCH_SIZE}, but mixup and cutmix mix pairs; use an even "
                "one, or set AUG.MIXUP and AUG.CUTMIX to 0"
            )
        if cfg.DATA.BATCH_SIZE == 1:
            raise ConfigError("DATA.BATCH_SIZE (--batch-size) is 1; BatchNorm cannot train on one image, use 2 or more")
        transform = train_transform(
            img_size=cfg.DATA.IMG_SIZE,
            interpolation=cfg.DATA.INTERPOLATION,
            scale=cfg.AUG.SCALE,
            ratio=cfg.AUG.RATIO,
            hflip=cfg.AUG.HFLIP,
            color_jitter=cfg.AUG.COLOR_JITTER,
            auto_augment_policy=cfg.AUG.AUTO_AUGMENT,
            mean=cfg.DATA.MEAN,
            reprob=cfg.AUG.REPROB,
            remode=cfg.AUG.REMODE,
            recount=cfg.AUG.RECOUNT,
            exif=cfg.DATA.EXIF,
            backend=cfg.DATA.BACKEND,
        )
        return ImageDataset(self._source(cfg.DATA.TRAIN_SPLIT, transform.decode), transform, cfg.DATA.ON_ERROR)

    def val_dataset(self, classes: Optional[Sequence[str]] = None) -> ImageDataset:
        """The validation images; `classes` are those the model knows, in label order.

        Raises:
            DataError: as `train_dataset`, or the classes are other ones.
        """
        cfg = self.cfg
        transform = self._eval_transform(cfg.TEST.CROP_PCT)
        source = self._source(cfg.DATA.VAL_SPLIT, transform.decode)
        if classes is not None and list(classes) != list(source.classes):
            only_known = sorted(set(classes) - set(source.classes))[:5]
            only_val = sorted(set(source.classes) - set(classes))[:5]
            raise DataError(
                f"DATA.DATA_PATH: the validation classes are not the training classes (only in train: "
                f"{', '.join(map(_shown, only_known)) or 'none'}; only in val: {', '.join(map(_shown, only_val)) or 'none'}); make them the same"
            )
        return ImageDataset(source, transform, cfg.DATA.ON_ERROR)

    def set_dataset(self, open_: Callable[[Callable[[BinaryIO], Any]], Any], crop_pct: float = 0.0) -> ImageDataset:
        """The images of an evaluation set, transformed as the validation images are.

        Args:
            open_: decoder of files -> the set's source.
            crop_pct: of this set; 0: TEST.CROP_PCT.
        """
        transform = self._eval_transform(crop_pct or self.cfg.TEST.CROP_PCT)
        return ImageDataset(open_(transform.decode), transform, self.cfg.DATA.ON_ERROR)

    def _eval_transform(self, crop_pct: float) -> Transform:
        cfg = self.cfg
        return eval_transform(cfg.DATA.IMG_SIZE, cfg.DATA.INTERPOLATION, crop_pct, cfg.DATA.EXIF)

    def _source(self, split: str, decode: Callable[[BinaryIO], Any]):
        cfg = self.cfg
        source = open_source(
            cfg.DATA.DATASET,
            split,
            cfg.DATA.DATA_PATH,
            num_classes=cfg.MODEL.NUM_CLASSES,
            num_images=cfg.DATA.SYNTHETIC_IMAGES,
            decode=decode,
            outside_links=cfg.DATA.OUTSIDE_LINKS,
            class_to_idx=read_class_map(cfg.DATA.CLASS_MAP) if cfg.DATA.CLASS_MAP else None,
        )
        if cfg.MODEL.NUM_CLASSES not in (0, len(source.classes)):
            raise DataError(
                f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {split} has {len(source.classes)} classes; "
                "correct it, or set it to 0 to take the data set's"
            )
        return source

    # Model

    def build_model(self, num_classes: int) -> nn.Module:
        """The config's model with a head for so many classes.

        Raises:
            ConfigError: unknown name, or values that the model refuses.
        """
        cfg = self.cfg
        return create_model(
            cfg.MODEL.TYPE,
            cfg.MODEL.NAME,
            num_classes=num_classes,
            drop_rate=cfg.MODEL.DROP_RATE,
            drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
            img_size=cfg.DATA.IMG_SIZE,
            fat=to_dict(cfg.MODEL.FAT),
        )

    # Learning

    def prepare_training(self, num_classes: int) -> None:
        """Makes mixup and the criterion for so many classes."""
        cfg = self.cfg
        self.mixup = None
        if self.mixes:
            self.mixup = Mixup(
                mixup_alpha=cfg.AUG.MIXUP,
                cutmix_alpha=cfg.AUG.CUTMIX,
                cutmix_minmax=cfg.AUG.CUTMIX_MINMAX or None,
                prob=cfg.AUG.MIXUP_PROB,
                switch_prob=cfg.AUG.MIXUP_SWITCH_PROB,
                mode=cfg.AUG.MIXUP_MODE,
                label_smoothing=cfg.MODEL.LABEL_SMOOTHING,
                num_classes=num_classes,
            )
        self.criterion: nn.Module = (
            SoftTargetCrossEntropy() if self.mixes else LabelSmoothingCrossEntropy(cfg.MODEL.LABEL_SMOOTHING)
        )

    def loss(self, model: nn.Module, batch: Examples) -> torch.Tensor:
        """The mean loss of a batch of images (B, 3, H, W) and targets (B,)."""
        images, targets, _ = batch
        if self.mixup:
            images, targets = self.mixup(images, targets)  # targets: (B, classes)
        return self.criterion(model(images), targets)

    def evaluate_batch(self, model: nn.Module, batch: Examples, metrics: ClassificationMetrics) -> None:
        """Adds the model's predictions of a batch to the metrics."""
        metrics.update(model(batch.images), batch.targets, batch.keys)

    def metrics(self, device: torch.device) -> ClassificationMetrics:
        return ClassificationMetrics(device)

    def preview(self, batch: Examples, classes: Sequence[str]) -> np.ndarray:
        """A picture of a batch's first images as the model gets them, before mixup, with their classes."""
        images, targets = batch.images[:32], batch.targets[:32]
        return montage(images, [classes[target] for target in targets.tolist()], self.cfg.DATA.MEAN, self.cfg.DATA.STD)


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)
