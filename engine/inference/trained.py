"""A trained model with all that it needs to look at an image, from a checkpoint alone."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from data.batches import Finish, Picture, collate_pictures
from data.class_maps import read_class_map
from data.sample import Sample
from data.sources.reading import read_image
from data.transforms import Transform, eval_transform
from utils.config import config_from, load_config
from utils.conflicts import is_rgb
from utils.errors import CheckpointError, ConfigError
from utils.files import open_regular
from utils.image_size import Size
from utils.pictures import pixels_of

from ..checkpoints.file import open_checkpoint
from ..checkpoints.load import load_weights, require_fit
from ..evaluation.sets.tables import is_imagenet, meanings
from ..setup.preprocessing import input_warnings, take_from_model
from ..tasks import create_task


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, and what it was trained on."""

    path: Path
    model: nn.Module
    cfg: CfgNode
    classes: list[str]  # in label order
    weights: str  # 'raw' or 'ema'
    note: str = ""  # what was done to get them from the file
    warnings: tuple[str, ...] = ()  # what it sees otherwise than it was trained with
    chosen: Mapping[str, Any] = field(default_factory=dict)  # see `tasks.base.ChoosingEvaluator`

    @property
    def is_of_imagenet(self) -> bool:
        return is_imagenet(self.classes)

    @property
    def own_size(self) -> Size:
        """Of the images it was evaluated on."""
        return self.cfg.TEST.IMG_SIZE or self.cfg.DATA.IMG_SIZE

    @property
    def names(self) -> list[str]:
        """What the classes are called: ImageNet's ids by their first English name, others as they are."""
        return [text.split(",")[0] or name for text, name in zip(meanings(self.classes), self.classes)]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of each class (B, C), that it is the image's one class, or, with TASK multilabel, that it is one of its classes."""
        return logits.sigmoid() if self.cfg.TASK == "multilabel" else logits.softmax(dim=1)

    def transform(self, img_size: Size = 0, crops: int = 1) -> Transform:
        """Its evaluation's transform to one view of a size, 0 for its own, or to 5 `crops`; `.decode` reads an open file."""
        cfg = self.cfg
        return eval_transform(
            img_size or self.own_size,
            cfg.DATA.INTERPOLATION,
            cfg.TEST.CROP_PCT,
            cfg.DATA.EXIF,
            crops,
            cfg.TEST.CROP_MODE,
            cfg.DATA.MEAN,
            cfg.DATA.IN_CHANS,
        )

    def read(self, path: Path, img_size: Size = 0) -> Picture:
        """An image file as its evaluation sees it, before the normalisation.

        Raises:
            DataError: no such file, or no image.
            OutputError: it cannot be read just now.
        """
        transform = self.transform(img_size)
        image = read_image(str(path), partial(open_regular, path), transform.decode, "give an image file")
        picture = transform.picture(image)
        assert isinstance(picture, Picture)  # of one crop
        return picture

    def shown(self, picture: Picture) -> np.ndarray:
        """A picture as RGB pixels (H, W, 3), uint8, see `utils.pictures.three_bands`."""
        data = self.cfg.DATA
        return picture.pixels if is_rgb(self.cfg) else pixels_of(self.normalise([picture])[0], data.MEAN, data.STD)

    def normalise(self, pictures: Sequence[Picture], device: torch.device = torch.device("cpu")) -> torch.Tensor:
        """The pictures as what the model takes: (B, 3, H, W), float32, on the device."""
        batch = collate_pictures([Sample(picture, 0) for picture in pictures])
        return Finish(self.cfg.DATA.MEAN, self.cfg.DATA.STD, device, self.cfg.TRAIN.CHANNELS_LAST)(batch).tensor


def load_trained(
    path: Path, cfg_file: Optional[Path] = None, class_map: str = "", weights: Optional[str] = None
) -> Trained:
    """The model of a checkpoint; its averaged weights if these were what made it the best one, or if it is another tool's.

    Args:
        cfg_file: config for a checkpoint that carries none (a state dict, the released code's); it wins over the checkpoint's.
        class_map: names of the classes for one that carries none, as DATA.CLASS_MAP: a text file, a name in each line, or one
            of timm's lists; they win over the checkpoint's.
        weights: 'raw' or 'ema', to have others.

    Raises:
        CheckpointError: no such file, a damaged one, one of another model, without a config or class names, or with weights
            that are not numbers.
        ConfigError: the config or the list of names cannot be used.
    """
    checkpoint = open_checkpoint(path)
    name = checkpoint.choose(weights)
    if cfg_file:
        cfg = take_from_model(load_config(cfg_file, command="predict"))
    elif checkpoint.config:
        try:
            cfg = config_from(checkpoint.config, f"{path}: its config")
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
    else:
        raise CheckpointError(
            f"{path}: has no config; say which model it is of with --cfg configs/fat_b0.yaml, or use a run's best.pth"
        )
    classes = checkpoint.classes
    if class_map:
        classes = list(read_class_map(class_map, "--classes"))
    if classes is None:
        raise CheckpointError(
            f"{path}: has no class names; give them with --classes names.txt (one in each line, in label "
            "order: torchvision counts 0, 1, 10, 2, timm 0, 1, 2, 10) or --classes imagenet-1k"
        )
    try:
        model = create_task(cfg).build_model(len(classes))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    fitted = require_fit(model, checkpoint, name)
    load_weights(model, fitted.state, path)
    for key, parameter in model.named_parameters():
        if parameter.isnan().any():
            raise CheckpointError(
                f"{path}: the numbers in its {key} are none (NaN), as of a training that failed; use another checkpoint"
            )
    warnings = input_warnings(checkpoint.config, cfg) if cfg_file else []
    return Trained(path, model.eval(), cfg, classes, name, fitted.note, tuple(warnings), checkpoint.chosen(name))
