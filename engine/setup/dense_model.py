"""The backbone of a dense model, as the config says it."""

from typing import Any

from yacs.config import CfgNode

from utils.config import to_dict


def backbone_arguments(cfg: CfgNode) -> dict[str, Any]:
    """What `models.DenseBackbone` gets of MODEL besides the name: drop path, and of a FAT what differs from the registered one."""
    arguments: dict[str, Any] = {}
    if cfg.MODEL.DROP_PATH_RATE:
        arguments["drop_path_rate"] = cfg.MODEL.DROP_PATH_RATE
    if cfg.MODEL.TYPE == "fat":
        arguments |= {key: value for key, value in to_dict(cfg.MODEL.FAT).items() if value not in ([], "")}
        if not arguments["distilled"]:  # a second classifier, which maps do not have
            del arguments["distilled"]
    return arguments
