"""Entry points of torch.hub: `torch.hub.load(PATH, "fat_b0", source="local", checkpoint="best.pth")`.

The packages `models` and, while a checkpoint is read, `engine`, `data` and `utils` are imported under these names: a program
with another package `models` of its own cannot load FAT this way.
"""

import sys
from pathlib import Path
from typing import Any, Optional

import timm as _timm

dependencies = ["torch", "timm"]  # of a checkpoint all of requirements.txt

_ROOT = Path(__file__).resolve().parent
_PARTS = ("engine", "data", "utils")


def fat_tiny(pretrained: bool = False, checkpoint: Optional[str] = None, **kwargs: Any):
    """FAT-Tiny, 0.4 M parameters; see `fat_b0`."""
    return _create("fat_tiny", pretrained, checkpoint, kwargs)


def fat_small(pretrained: bool = False, checkpoint: Optional[str] = None, **kwargs: Any):
    """FAT-Small, 1.9 M parameters; see `fat_b0`."""
    return _create("fat_small", pretrained, checkpoint, kwargs)


def fat_b0(pretrained: bool = False, checkpoint: Optional[str] = None, **kwargs: Any):
    """FAT-B0, 4.5 M parameters.

    Args:
        pretrained: False; no weights are published with this code.
        checkpoint: file of main.py, whose config and better weights (raw or averaged) are used; one of the authors' released
            code; or a state dict. Of the last two the number of classes is that of the head.
        kwargs: of `models.FAT`; with another `num_classes` than the checkpoint's the head starts anew.

    Returns:
        The model in training mode, as timm creates them: (B, 3, H, W) normalised images -> (B, num_classes).

    Raises:
        ValueError: `pretrained`, a checkpoint that cannot be used, a package that reading one needs, or arguments that the model refuses.
    """
    return _create("fat_b0", pretrained, checkpoint, kwargs)


def fat_b1(pretrained: bool = False, checkpoint: Optional[str] = None, **kwargs: Any):
    """FAT-B1, 7.8 M parameters; see `fat_b0`."""
    return _create("fat_b1", pretrained, checkpoint, kwargs)


def fat_b2(pretrained: bool = False, checkpoint: Optional[str] = None, **kwargs: Any):
    """FAT-B2, 13.5 M parameters; see `fat_b0`."""
    return _create("fat_b2", pretrained, checkpoint, kwargs)


def fat_b3(pretrained: bool = False, checkpoint: Optional[str] = None, **kwargs: Any):
    """FAT-B3, 29 M parameters; see `fat_b0`."""
    return _create("fat_b3", pretrained, checkpoint, kwargs)


def _create(name: str, pretrained: bool, checkpoint: Optional[str], kwargs: dict):
    if pretrained:
        raise ValueError(f"pretrained: no weights of {name} are published with this code; give checkpoint=FILE, of main.py or the released code")
    _import("models")
    try:
        return _timm.create_model(name, **kwargs) if checkpoint is None else _from_checkpoint(name, checkpoint, kwargs)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{name}: the arguments are refused ({' '.join(str(error).split())})") from None


def _from_checkpoint(name: str, checkpoint: str, kwargs: dict):
    before = {part for part in _PARTS if part in sys.modules}
    try:
        return _load(name, Path(checkpoint), kwargs)
    except ImportError as error:
        raise ValueError(f"checkpoint: {error.name or 'a package'} cannot be imported ({error}); pip install -r {_ROOT / 'requirements.txt'}") from None
    finally:
        for module in [module for module in sys.modules if module.split(".")[0] in set(_PARTS) - before]:
            del sys.modules[module]  # a program's own utils is then found again


def _load(name: str, path: Path, kwargs: dict):
    for part in _PARTS:
        _import(part)
    from engine.checkpoints.file import open_checkpoint
    from engine.checkpoints.load import load_pretrained, load_weights, require_fit
    from utils.errors import UserError

    try:
        opened = open_checkpoint(path)
        checkpoint = {"config": opened.config, "classes": opened.classes}
        model = _timm.create_model(name, **{**_settings(name, checkpoint, opened.states[opened.better], path), **kwargs})
        if "num_classes" in kwargs:
            load_pretrained(model, opened, opened.better)
        else:
            load_weights(model, require_fit(model, opened, opened.better).state, path)
        model.pretrained_cfg.update(_told(checkpoint, path), num_classes=model.num_classes)
    except UserError as error:
        raise ValueError(str(error)) from None
    return model


def _told(checkpoint: dict, path: Path) -> dict:
    """What timm is to know of images and classes (`timm.data.resolve_model_data_config(model)`), as far as the checkpoint says it."""
    from engine.inference.trained import data_config
    from utils.config import config_from

    images = data_config(config_from(checkpoint["config"], f"{path}: its config")) if isinstance(checkpoint.get("config"), dict) else {}
    return {**images, **({"label_names": checkpoint["classes"]} if isinstance(checkpoint.get("classes"), list) else {})}


def _settings(name: str, checkpoint: dict, weights: dict, path: Path) -> dict:
    """Arguments of the model that the weights are of."""
    settings = {"num_classes": len(weights["head.weight"])} if "head.weight" in weights else {}
    config = checkpoint.get("config")
    if not isinstance(config, dict):
        return {**settings, "distilled": "head_dist.weight" in weights}
    from utils.config import config_from, to_dict

    cfg = config_from(config, f"{path}: its config")
    if cfg.MODEL.TYPE != "fat" or cfg.MODEL.NAME.lower() != name:
        raise ValueError(f"{path}: is of {cfg.MODEL.NAME}, not {name}; use the entry point of that name, or scripts/export.py hub")
    return {**settings, **{key: value for key, value in to_dict(cfg.MODEL.FAT).items() if value not in ([], "")}}


def _import(part: str) -> None:
    module = __import__(part)
    place = getattr(module, "__file__", None)
    if place is None or _ROOT not in Path(place).resolve().parents:
        raise ValueError(f"{part}: another package of this name is imported already ({place}); load FAT before it, or in another process")
