"""Image classification."""

from dataclasses import replace
from typing import Callable, Optional, Sequence

import numpy as np
import torch
from timm.data import ImageNetInfo, Mixup
from torch import nn
from yacs.config import CfgNode

from data.batches import Examples, resize_examples
from data.class_maps import look_alikes, read_class_map
from data.label_sets import LabelCells
from data.loader import AnyDataset, dataset_of
from data.sources import Opening, open_source
from data.sources.lists import Listing
from data.sources.source import AnySource
from data.sources.val_share import ValShare
from data.transforms import Augmentation, Transform, eval_transform, train_transform
from utils.config import to_dict
from utils.conflicts import mixes
from utils.errors import ConfigError, DataError, UserError
from utils.image_size import Size, frozen, height_and_width, size_text
from utils.metrics import ACC1, ACC5, LOSS, MACRO, NUM_IMAGES, ClassificationMetrics
from utils.pictures import montage
from utils.schema import VALIDATION

from ..evaluation.evaluators import ClassEvaluator, ClosingClassEvaluator
from ..setup.fetching import fetching_of
from ..setup.group_draws import mixed
from ..setup.model import PooledFeatures, create_model
from .base import Decode, Purpose
from .criterion import create_criterion
from .distill import Distillation
from .imbalance import Imbalance, read_imbalance


class LabelledImages:
    """What tasks share whose targets are labels of whole images: the data sets and the model."""

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg
        self.imbalance = Imbalance()  # of the training images, once they are opened

    @property
    def notes(self) -> Sequence[str]:
        return self.imbalance.notes

    @property
    def eval_size(self) -> Size:
        return self.cfg.TEST.IMG_SIZE or self.cfg.DATA.IMG_SIZE

    # Data

    def train_dataset(self) -> AnyDataset:
        """The augmented training images.

        Raises:
            ConfigError: a policy of augmentation that is unknown, or that the backend does not have; weights of classes that cannot
                be had.
            DataError: the data set is missing, incomplete, or has not MODEL.NUM_CLASSES classes.
        """
        cfg = self.cfg
        transform = self._train_transform(cfg.DATA.IMG_SIZE)
        sized = {frozen(size): self._train_transform(size) for _, size in cfg.TRAIN.IMG_SIZES}
        source = self._source(cfg.DATA.TRAIN_SPLIT, transform.decode)
        self.imbalance = read_imbalance(cfg, source)
        return dataset_of(source, transform, cfg.DATA.ON_ERROR, sized)

    def _train_transform(self, img_size: Size) -> Transform:
        cfg = self.cfg
        augmentation = Augmentation(
            scale=cfg.AUG.SCALE,
            ratio=cfg.AUG.RATIO,
            hflip=cfg.AUG.HFLIP,
            color_jitter=cfg.AUG.COLOR_JITTER,
            auto_augment=cfg.AUG.AUTO_AUGMENT,
            reprob=cfg.AUG.REPROB,
            remode=cfg.AUG.REMODE,
            recount=cfg.AUG.RECOUNT,
            splits=cfg.AUG.SPLITS,
        )
        colours, files = cfg.DATA.MEAN, (cfg.DATA.EXIF, cfg.DATA.BACKEND, cfg.DATA.IN_CHANS)
        return train_transform(img_size, cfg.DATA.INTERPOLATION, colours, augmentation, *files)

    def val_dataset(self, classes: Optional[Sequence[str]] = None) -> AnyDataset:
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
            if not only_known and not only_val:
                raise DataError(
                    "DATA.DATA_PATH: the validation classes are the training classes in another order; make it the same "
                    "(DATA.CLASS_ORDER, DATA.CLASS_MAP)"
                )
            alike = look_alikes(only_known, only_val)
            raise DataError(
                f"DATA.DATA_PATH: the validation classes are not the training classes (only in train: "
                f"{', '.join(map(_shown, only_known)) or 'none'}; only in val: {', '.join(map(_shown, only_val)) or 'none'}"
                f"{f'; {alike}' if alike else ''}); make them the same, or "
                "name all classes in a text file and give it as DATA.CLASS_MAP, which may name classes without images; another split is named "
                "by DATA.VAL_SPLIT"
            )
        return dataset_of(source, transform, cfg.DATA.ON_ERROR)

    def _eval_transform(self, crop_pct: float, crops: int = 0) -> Transform:
        cfg = self.cfg
        return eval_transform(
            self.eval_size,
            cfg.DATA.INTERPOLATION,
            crop_pct,
            cfg.DATA.EXIF,
            crops or cfg.TEST.CROPS,
            cfg.TEST.CROP_MODE,
            cfg.DATA.MEAN,
            cfg.DATA.IN_CHANS,
        )

    def _source(self, split: str, decode: Decode) -> AnySource:
        cfg = self.cfg
        dataset = cfg.DATA.DATASET
        if cfg.DATA.ZIP_MODE:
            dataset = "/".join(["zip", *dataset.split("/")[1:]])

        opening = Opening(
            num_classes=cfg.MODEL.NUM_CLASSES,
            num_images=cfg.DATA.SYNTHETIC_IMAGES,
            outside_links=cfg.DATA.OUTSIDE_LINKS,
            class_to_idx=read_class_map(cfg.DATA.CLASS_MAP) if cfg.DATA.CLASS_MAP else None,
            columns=cfg.DATA.COLUMNS,
            class_order=cfg.DATA.CLASS_ORDER,
            listing=self._listing(),
            cells=self._cells(),
            fetching=fetching_of(cfg),
            timeout=cfg.DATA.TIMEOUT,
        )

        def opened(name: str) -> AnySource:
            place, share = self._part(name)
            return open_source(dataset, place, cfg.DATA.DATA_PATH, decode, replace(opening, share=share))

        source = opened(split)
        if cfg.MODEL.NUM_CLASSES not in (0, len(source.classes)):
            raise DataError(
                f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {split} has {len(source.classes)} classes"
                f"{self._difference(split, source.classes, opened)}; correct it, or set it to 0 to take the data set's; DATA.CLASS_MAP, a "
                "text file of all classes, may name some without images"
            )
        return source

    def _cells(self) -> Optional[LabelCells]:
        """What takes several labels of an image apart; None: each has one."""
        return None

    def _listing(self) -> Listing:
        cfg = self.cfg
        undivided, may_miss = cfg.DATA.VAL_SHARE > 0, cfg.DATA.ON_ERROR == "skip"
        return Listing(cfg.DATA.LIST, cfg.DATA.TRAIN_SPLIT, undivided, may_miss)

    def _part(self, split: str) -> tuple[str, Optional[ValShare]]:
        """Where the images of a split lie, and which part of these they are: with DATA.VAL_SHARE the training images and
        the validation images lie in one split. Other splits, as a script may name them, are as they are.
        """
        cfg = self.cfg
        if not cfg.DATA.VAL_SHARE or split not in (cfg.DATA.TRAIN_SPLIT, VALIDATION):
            return split, None
        validation = split != cfg.DATA.TRAIN_SPLIT
        return cfg.DATA.TRAIN_SPLIT, ValShare(cfg.DATA.VAL_SHARE, cfg.DATA.VAL_SEED, validation)

    def _difference(self, split: str, classes: Sequence[str], opened: Callable[[str], AnySource]) -> str:
        """Which classes a split lacks, or has too many, of the MODEL.NUM_CLASSES that there should be, if that can be known."""
        data = self.cfg.DATA
        where, expected = "DATA.CLASS_MAP", list(classes)
        if self.cfg.MODEL.NUM_CLASSES == 1000 and set(classes) < set(ImageNetInfo().label_names()):
            where, expected = "ImageNet", ImageNetInfo().label_names()
        elif not data.CLASS_MAP:
            where = data.VAL_SPLIT if split == data.TRAIN_SPLIT else data.TRAIN_SPLIT
            try:
                expected = list(opened(where).classes)
            except UserError:  # it is about the other split, which is not asked for
                return ""
        missing, more = sorted(set(expected) - set(classes)), sorted(set(classes) - set(expected))
        parts = [
            f"{verb} {', '.join(map(_shown, names[:3]))}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for verb, names in (("lacks", missing), ("has besides", more))
            if names
        ]
        return f" (compared with {where} it {' and '.join(parts)})" if parts else ""

    # Model

    def build_model(self, num_classes: int) -> nn.Module:
        """The config's model with a head for so many classes.

        Raises:
            ConfigError: unknown name, or values that the model refuses.
        """
        cfg = self.cfg
        model = create_model(
            cfg.MODEL.TYPE,
            cfg.MODEL.NAME,
            num_classes=num_classes,
            drop_rate=cfg.MODEL.DROP_RATE,
            drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
            img_size=cfg.DATA.IMG_SIZE,
            fat=to_dict(cfg.MODEL.FAT),
            in_chans=cfg.DATA.IN_CHANS,
        )
        for key, sizes in (
            ("TRAIN.IMG_SIZES", [size for _, size in cfg.TRAIN.IMG_SIZES]),
            ("TEST.IMG_SIZE", [self.eval_size]),
        ):
            others = {height_and_width(size) for size in sizes} - {height_and_width(cfg.DATA.IMG_SIZE)}
            if others and (getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size"):
                size = size_text(cfg.DATA.IMG_SIZE)
                raise ConfigError(
                    f"{key}: {cfg.MODEL.NAME} takes images of one size, DATA.IMG_SIZE {size}; leave the key at its default"
                )
        return model

    def resized(self, batch: Examples, size: Size) -> Examples:
        return resize_examples(batch, size)

    def evaluation_like(self, batch: Examples) -> Examples:
        one_view = batch._replace(images=batch.tensor[: len(batch.targets)])
        one_crop = self.resized(one_view, self.eval_size)
        return one_crop._replace(images=one_crop.tensor.repeat(self.cfg.TEST.CROPS, 1, 1, 1))


class Classification(LabelledImages):
    """Classifies images: mixup or cutmix, cross-entropies with label smoothing, top-1 and top-5 accuracy."""

    primary = ACC1
    figures = (ACC1, ACC5, LOSS, NUM_IMAGES, *MACRO)

    def feature_datasets(self, classes: Sequence[str]) -> tuple[AnyDataset, AnyDataset]:
        """The training and validation images, both as evaluation sees them, in one view each.

        Raises:
            DataError: as `train_dataset`, or their classes are not `classes`, those that the model knows, in label order.
        """
        cfg = self.cfg
        transform = self._eval_transform(cfg.TEST.CROP_PCT, crops=1)
        sources = [self._source(split, transform.decode) for split in (cfg.DATA.TRAIN_SPLIT, cfg.DATA.VAL_SPLIT)]
        if any(list(source.classes) != list(classes) for source in sources):
            raise DataError(
                "DATA.DATA_PATH: TEST.KNN compares training and validation images, whose classes are not the model's; give the data set "
                "it was trained on"
            )
        training, validation = (dataset_of(source, transform, cfg.DATA.ON_ERROR) for source in sources)
        return training, validation

    def set_dataset(self, open_: Callable[[Decode], AnySource], crop_pct: float = 0.0) -> AnyDataset:
        """The images of an evaluation set, transformed as the validation images are.

        Args:
            open_: decoder of files -> the set's source.
            crop_pct: of this set; 0: TEST.CROP_PCT.
        """
        transform = self._eval_transform(crop_pct or self.cfg.TEST.CROP_PCT)
        return dataset_of(open_(transform.decode), transform, self.cfg.DATA.ON_ERROR)

    def features(self, model: nn.Module) -> nn.Module:
        """The model that gives what TEST.KNN compares images by: (B, 3, H, W) -> (B, D)."""
        return PooledFeatures(model)

    # Learning

    @property
    def mixes(self) -> bool:
        return mixes(self.cfg)

    def prepare_training(self, num_classes: int, distillation: Optional[Distillation] = None) -> None:
        """Makes mixup and the criterion for so many classes; `distillation` is what a teacher adds to it."""
        cfg = self.cfg
        self.distillation = distillation
        self.mixup = None
        if self.mixes:
            self.mixup = create_mixup(cfg, num_classes)
        self.criterion = create_criterion(
            cfg.TRAIN.LOSS, cfg.MODEL.LABEL_SMOOTHING, cfg.TRAIN.BCE_TARGET_THRESH, self.mixes, cfg.AUG.SPLITS,
            self.imbalance.weights, self.imbalance.adjustment,
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: Examples) -> dict[str, torch.Tensor]:
        """The mean loss of a batch of images (B, 3, H, W), or (V * B, 3, H, W) with V views, and targets (B,)."""
        images, targets = batch.tensor, batch.targets
        if self.mixup:
            images, targets = mixed(self.mixup, images, targets)  # targets: (B, classes)
        outputs = model(images)
        logits, taught = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        loss = self.criterion(logits, targets)
        return {"loss": self.distillation(loss, taught, images) if self.distillation else loss}

    def evaluator(self, purpose: Purpose, device: torch.device) -> ClassEvaluator:
        cfg = self.cfg
        if purpose == "closing":
            return ClosingClassEvaluator(device, cfg.DATA.MEAN, cfg.DATA.STD, cfg.TEST.FLIP)
        return self.set_evaluator(ClassificationMetrics(device))

    def set_evaluator(self, metrics: ClassificationMetrics) -> ClassEvaluator:
        """An evaluator that adds to such metrics."""
        return ClassEvaluator(metrics, self.cfg.TEST.FLIP)

    def preview(self, batch: Examples, classes: Sequence[str]) -> np.ndarray:
        """A picture of a batch's first images as the model gets them, before mixup, with their classes; views side by side."""
        views = len(batch.images) // len(batch.targets)
        images = batch.tensor.unflatten(0, (views, -1)).transpose(0, 1).flatten(0, 1)[:32]
        targets = batch.targets.repeat_interleave(views)[:32]
        return montage(images, [classes[target] for target in targets.tolist()], self.cfg.DATA.MEAN, self.cfg.DATA.STD)


def create_mixup(cfg: CfgNode, num_classes: int, several: bool = False) -> Mixup:
    """Mixes images and targets, (B,) labels or, where an image may have `several`, (B, C), to (B, C)."""
    return Mixup(
        mixup_alpha=cfg.AUG.MIXUP,
        cutmix_alpha=cfg.AUG.CUTMIX,
        cutmix_minmax=cfg.AUG.CUTMIX_MINMAX or None,
        prob=cfg.AUG.MIXUP_PROB,
        switch_prob=cfg.AUG.MIXUP_SWITCH_PROB,
        mode=cfg.AUG.MIXUP_MODE,
        label_smoothing=cfg.MODEL.LABEL_SMOOTHING,
        num_classes=num_classes,
        multi_label=several,
    )


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)
