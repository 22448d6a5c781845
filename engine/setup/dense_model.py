"""Models of dense prediction: a backbone by MODEL.NAME under a head by MODEL.HEAD."""

from typing import Any, Callable, Mapping

from timm.models import is_model, list_models
from yacs.config import CfgNode

from utils.config import to_dict
from utils.errors import ConfigError, did_you_mean, one_line

from .model import ARCHITECTURE, Model


def create_dense_model(cfg: CfgNode, heads: Mapping[str, Any], create: Callable[..., Model]) -> Model:
    """The config's model.

    Args:
        heads: by the names that MODEL.HEAD may have.
        create: (head, backbone's name, **its arguments) -> the model.

    Raises:
        ConfigError: unknown name of the head or the backbone, or values that the backbone refuses.
    """
    head = cfg.MODEL.HEAD
    if head not in heads:
        raise ConfigError(f"MODEL.HEAD is {head!r}; with TASK {cfg.TASK}, {did_you_mean(head, heads)}")
    name, arguments = backbone_of_config(cfg)
    try:
        return create(head, name, **arguments)
    except (TypeError, ValueError, AssertionError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"MODEL.NAME: {cfg.MODEL.NAME} cannot be built as a backbone ({one_line(error, 200)}); check MODEL's values, or "
            "take a model of timm's that knows features_only"
        ) from error


def backbone_of_config(cfg: CfgNode) -> tuple[str, dict[str, Any]]:
    """The name and arguments of `models.dense.DenseBackbone`; a FAT of one's own name has its architecture in MODEL.FAT.

    Raises:
        ConfigError: unknown name.
    """
    name, arguments = cfg.MODEL.NAME, {"drop_path_rate": cfg.MODEL.DROP_PATH_RATE}
    if cfg.MODEL.TYPE == "timm":
        if not is_model(name):
            raise ConfigError(f"MODEL.NAME is {name!r}, unknown to timm; {did_you_mean(name, list_models())}")
        return name, arguments if cfg.MODEL.DROP_PATH_RATE else {}
    arguments.update({key: value for key, value in to_dict(cfg.MODEL.FAT).items() if value not in ([], "")})
    arguments.pop("distilled")  # of heads that a backbone has not
    known = list_models(module="fat")
    if name.lower() in known:
        return name.lower(), arguments
    missing = [key for key in ARCHITECTURE if key not in arguments]
    if missing:
        raise ConfigError(
            f"MODEL.NAME is {name!r}, which is not registered, and MODEL.FAT has no {', '.join(missing)}; "
            + did_you_mean(name.lower(), known)
        )
    return "fat_b0", arguments
