"""How timm prepares the images of its models, beside how the config does (DATA.FROM_MODEL)."""

from typing import Any, Collection, Mapping, Optional

from timm.data import resolve_data_config
from yacs.config import CfgNode

from utils.config import to_dict, value_of
from utils.conflicts import is_rgb
from utils.errors import ConfigError
from utils.image_size import height_and_width, size_text
from utils.schema import COLOURS, INPUT_KEYS, KEYS, keys_of

from ..checkpoints.resume import config_changes
from .model import published

NOT_BUILT = ", which is not built here"


def take_from_model(cfg: CfgNode, given: Collection[str] = ()) -> CfgNode:
    """The config with the preprocessing that timm says its model has, where DATA.FROM_MODEL asks for it; there the
    key is then False, so that the config says all by itself and can be used again.

    Args:
        given: keys that keep the config's values, as those of --opts.

    Raises:
        ConfigError: timm has no such model.
    """
    if not cfg.DATA.FROM_MODEL:
        return cfg
    values = of_model(cfg)
    if not values:
        raise ConfigError(
            f"DATA.FROM_MODEL: {cfg.MODEL.NAME} is no timm model, whose preprocessing could be taken; "
            "set MODEL.TYPE timm and MODEL.NAME, or leave it out"
        )
    if values["TEST.IMG_SIZE"] == values["DATA.IMG_SIZE"]:
        values["TEST.IMG_SIZE"] = 0  # follows the other
    taken = cfg.clone()
    taken.defrost()
    taken.DATA.FROM_MODEL = False
    for key, value in values.items():
        if key not in given and can_be_taken(key, value):  # `differences` names what is not
            section, name = key.split(".")
            taken[section][name] = value
    taken.freeze()
    return taken


def can_be_taken(key: str, value: Any) -> bool:
    return isinstance(value, (int, float, str, list)) and KEYS[key].rule.holds(value)


def data_config(cfg: CfgNode) -> dict[str, Any]:
    """How the config's evaluation prepares an image, in timm's words (`timm.data.resolve_data_config`); one view of it."""
    size = height_and_width(cfg.TEST.IMG_SIZE or cfg.DATA.IMG_SIZE)
    return {
        "input_size": (cfg.DATA.IN_CHANS, *size), "interpolation": cfg.DATA.INTERPOLATION, "mean": tuple(cfg.DATA.MEAN), "std": tuple(cfg.DATA.STD),
        "crop_pct": cfg.TEST.CROP_PCT, "crop_mode": cfg.TEST.CROP_MODE,
    }  # fmt: skip


def describe(cfg: CfgNode) -> str:
    """How the config prepares images, and whether timm does so for its model."""
    training, evaluation = cfg.DATA.IMG_SIZE, cfg.TEST.IMG_SIZE or cfg.DATA.IMG_SIZE
    sizes = f"{size_text(training)} px"
    if training != evaluation:
        sizes += f", in evaluation {size_text(evaluation)} px"
    as_there = f", as timm has them for {cfg.MODEL.NAME}" if of_model(cfg) and not differences(cfg) else ""
    colours = f"mean {cfg.DATA.MEAN}, std {cfg.DATA.STD}"
    crop = f"crop {cfg.TEST.CROP_PCT:g}" + f", {cfg.TEST.CROP_MODE}" * (cfg.TEST.CROP_MODE != "center")
    return f"images: {colours}, {cfg.DATA.INTERPOLATION}, {sizes}, {crop}{as_there}"


def input_warnings(trained_with: Optional[Mapping[str, Any]], cfg: CfgNode, training: bool = False) -> list[str]:
    """What weights see otherwise than they were trained with, a line each.

    Args:
        trained_with: the config in their checkpoint; None if another tool wrote it, then they are taken to be timm's.
        training: they are trained further, so that sizes and crops are no mistake.
    """
    keys = keys_of(COLOURS) if training else ("MODEL.FAT", *INPUT_KEYS)
    if trained_with is not None:
        changes = config_changes(trained_with, to_dict(cfg))
        return [f"since training {change}" for change in changes if change.startswith(keys)]
    differing = {key: text for key, text in differences(cfg).items() if key in keys or not training}
    if not differing:
        return []
    can_be_mended = any(not text.endswith(NOT_BUILT) for text in differing.values())
    advice = "; DATA.FROM_MODEL True takes the model's" if can_be_mended else ""
    return [
        f"images are prepared otherwise than timm does for {cfg.MODEL.NAME}: {', '.join(differing.values())}{advice}"
    ]


def differences(cfg: CfgNode) -> dict[str, str]:
    """Where timm prepares the model's images for an evaluation otherwise than the config, with both values; {} if it is no
    model of timm's.
    """
    theirs = of_model(cfg)
    if not theirs:
        return {}
    del theirs["DATA.IMG_SIZE"]  # of training
    ours = {key: value_of(cfg, key) for key in theirs}
    ours["TEST.IMG_SIZE"] = ours["TEST.IMG_SIZE"] or cfg.DATA.IMG_SIZE
    differing = {}
    for key, value in theirs.items():
        if ours[key] != value:
            differing[key] = f"{key} {ours[key]} (there {value})" + NOT_BUILT * (not can_be_taken(key, value))
    return differing


def of_model(cfg: CfgNode) -> dict[str, Any]:
    """How timm prepares the images of the config's model, as values of config keys; {} if it is no model of timm's."""
    if cfg.MODEL.TYPE != "timm":
        return {}
    theirs = published(cfg.MODEL.NAME, "MODEL.NAME")
    if theirs is None:  # a registered model of others
        return {}
    training = resolve_data_config(pretrained_cfg=theirs.to_dict())
    evaluation = resolve_data_config(pretrained_cfg=theirs.to_dict(), use_test_size=True)
    of_rgb = {"DATA.MEAN": list(evaluation["mean"]), "DATA.STD": list(evaluation["std"])}
    return {
        "DATA.IMG_SIZE": _side(training),
        "DATA.INTERPOLATION": evaluation["interpolation"],
        **(of_rgb if is_rgb(cfg) else {}),
        "TEST.IMG_SIZE": _side(evaluation),
        "TEST.CROP_PCT": float(evaluation["crop_pct"]),
        "TEST.CROP_MODE": evaluation["crop_mode"],
    }


def _side(images: Mapping[str, Any]) -> Any:
    height, width = images["input_size"][1:]
    return height if height == width else [height, width]
