"""Feature maps of a model's stages: some channels of each, the strongest or the first ones.

A channel's strength is the root of its mean square over the map. A map with values below 0 is blue there, red above and white
at 0, other maps go from dark (0) to bright; each panel has its own scale, its least and largest value stand above it. A FAT's
are those that it gives as a backbone (`forward_intermediates`: a stage's map before it is made smaller), other models' are what
timm takes for theirs.
"""

import argparse
from typing import Iterable

import numpy as np
import torch

from engine.inference.trained import Trained
from utils.cli import whole_number
from utils.errors import CheckpointError
from utils.pictures import grid

from . import inputs
from .inputs import Shot
from .panels import coloured, fit, span

SIDE = 144  # px of a panel
COLUMNS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inputs.add_image_arguments(parser)
    parser.add_argument("--stage", type=whole_number(1), nargs="+", metavar="N", help="from 1 (default: each)")
    parser.add_argument(
        "--number", type=whole_number(1, 256), default=17, metavar="N", help="channels that are shown (default: 17)"
    )
    parser.add_argument("--first", action="store_true", help="the first channels, not the strongest ones")


def make(args: argparse.Namespace) -> list[str]:
    """Returns what is to be said of the images that could not be read."""
    trained = inputs.open_model(args)

    def draw(shot: Shot) -> Iterable[tuple[str, np.ndarray]]:
        maps = feature_maps(trained, shot.image)
        wanted = args.stage or range(1, len(maps) + 1)
        for stage in [inputs.require_number("--stage", number, len(maps), trained.cfg.MODEL.NAME) for number in wanted]:
            values = maps[stage]
            channels = list(range(len(values)))[: args.number] if args.first else strongest(values, args.number)
            size = " x ".join(map(str, values.shape))
            text = f"Feature maps of stage {stage + 1} ({size}): the {len(channels)} {'first' if args.first else 'strongest'} channels"
            yield f"stage {stage + 1}", inputs.introduce(sheet(shot, values, channels), shot, trained, text)

    return inputs.each_image(args, trained, "features", draw)


@torch.no_grad()
def feature_maps(trained: Trained, image: torch.Tensor) -> list[np.ndarray]:
    """Of an image (1, 3, H, W), of each stage: (C, h, w).

    Raises:
        CheckpointError: the model gives none.
    """
    try:
        maps = trained.model.forward_intermediates(image, output_fmt="NCHW", intermediates_only=True)
    except (AttributeError, TypeError, AssertionError) as error:
        raise CheckpointError(
            f"{trained.path}: {trained.cfg.MODEL.NAME} gives no feature maps; use another model's checkpoint"
        ) from error
    return [values[0].numpy() for values in maps]


def strongest(values: np.ndarray, number: int) -> list[int]:
    """The channels of a map (C, h, w) with the largest mean square, by falling strength."""
    return np.argsort(-np.square(values).mean(axis=(1, 2)), kind="stable")[:number].tolist()


def sheet(shot: Shot, values: np.ndarray, channels: list[int]) -> np.ndarray:
    """The image and the channels of a map (C, h, w), RGB (height, width, 3)."""
    pictures = [fit(shot.pixels, SIDE), *(coloured(values[channel]) for channel in channels)]
    captions = ["image", *(f"channel {channel}\n{span(values[channel])}" for channel in channels)]
    return grid(pictures, captions, SIDE, COLUMNS)
