"""Images with several labels, or none: a question of yes or no for each class."""

from typing import Optional, Sequence

import numpy as np
import torch
from timm.data import Mixup
from torch import nn

from data.batches import Examples
from data.label_sets import LabelCells
from utils.conflicts import mixes
from utils.pictures import montage

from ..evaluation.label_evaluators import ClosingLabelEvaluator, LabelEvaluator
from ..evaluation.label_figures import FIGURES, MAP
from ..setup.group_draws import mixed
from .base import Purpose
from .classification import LabelledImages, create_mixup
from .criterion import create_label_criterion
from .distill import Distillation

PREVIEWED = 32  # images in a picture of a batch


class Multilabel(LabelledImages):
    """Says of each class whether an image has it: binary cross-entropies or the asymmetric loss, mAP and F1.

    Targets are (B, C), 1 for each class that an image has. Mixup and cutmix mix them as they mix the images.
    """

    primary = MAP
    figures = FIGURES
    mixup: Optional[Mixup]

    def _cells(self) -> LabelCells:
        return LabelCells(self.cfg.DATA.LABEL_SEPARATOR)

    def build_model(self, num_classes: int) -> nn.Module:
        self.num_classes = num_classes
        return super().build_model(num_classes)

    def prepare_training(self, num_classes: int, distillation: Optional[Distillation] = None) -> None:
        """Makes mixup and the criterion for so many classes; DISTILL is refused."""
        cfg = self.cfg
        self.mixup = create_mixup(cfg, num_classes, several=True) if mixes(cfg) else None
        focusing = (cfg.MULTILABEL.GAMMA_NEG, cfg.MULTILABEL.GAMMA_POS, cfg.MULTILABEL.CLIP)
        self.criterion = create_label_criterion(cfg.TRAIN.LOSS, cfg.TRAIN.BCE_TARGET_THRESH, *focusing)

    def loss(self, model: nn.Module, batch: Examples) -> dict[str, torch.Tensor]:
        """The mean loss of a batch of images (B, 3, H, W) and targets (B, C)."""
        images, targets = batch.tensor, batch.targets.float()
        if self.mixup:
            images, targets = mixed(self.mixup, images, targets)
        return {"loss": self.criterion(model(images), targets)}

    def evaluator(self, purpose: Purpose, device: torch.device) -> LabelEvaluator:
        cfg = self.cfg
        kind = ClosingLabelEvaluator if purpose == "closing" else LabelEvaluator
        return kind(self.num_classes, device, cfg.TEST.FLIP, cfg.MULTILABEL.THRESHOLD)

    def preview(self, batch: Examples, classes: Sequence[str]) -> np.ndarray:
        """A picture of a batch's first images as the model gets them, before mixup, with their classes."""
        targets = batch.targets[:PREVIEWED].cpu().numpy()
        captions = [", ".join(classes[label] for label in np.flatnonzero(row).tolist()) for row in targets]
        return montage(batch.tensor[:PREVIEWED], captions, self.cfg.DATA.MEAN, self.cfg.DATA.STD)
