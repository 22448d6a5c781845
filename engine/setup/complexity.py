"""A model's size, measured with an image of the config's size."""

import torch
from yacs.config import CfgNode

from utils.device import is_out_of_memory
from utils.errors import ConfigError
from utils.image_size import height_and_width, size_text
from utils.macs import Complexity, measure_complexity


def complexity_of(model: torch.nn.Module, cfg: CfgNode) -> Complexity:
    """The model's size; also what shows that it takes images of DATA.IMG_SIZE.

    Raises:
        ConfigError: it does not.
    """
    try:
        return measure_complexity(model, (cfg.DATA.IN_CHANS, *height_and_width(cfg.DATA.IMG_SIZE)))
    except Exception as error:  # models raise of many kinds
        if is_out_of_memory(error):
            raise
        reason = " ".join((str(error) or type(error).__name__).split("\n")[0].split())
        raise ConfigError(
            f"DATA.IMG_SIZE: {cfg.MODEL.NAME} cannot take images of {size_text(cfg.DATA.IMG_SIZE)} px ({reason}); use another size"
        ) from error
