"""Attention of chosen points of an image: what FASA's global side looks at from there, per stage and head.

softmax(Q K^T / sqrt(d)) over the keys, whose map is smaller than that of the queries by the stage's window. A row per point;
each head is a panel, after their mean. Each panel has its own scale, from blue (its least value) to red (its largest), which
stand above it. The points are of the image as the model sees it: resized, its centre cropped.
"""

import argparse
import math
from typing import Iterable, Sequence

import numpy as np
import torch

from models import FAT
from models.inspection import inspect_fasa
from utils.cli import whole_number
from utils.errors import CheckpointError
from utils.pictures import grid, overlay

from . import inputs
from .inputs import Shot
from .panels import SIDE, Panel, fit, mark, points_of

POINTS = ["0.5,0.5", "0.25,0.5", "0.75,0.25"]
MEAN = "mean"
MOST_COLUMNS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inputs.add_image_arguments(parser)
    parser.add_argument(
        "--points", nargs="+", default=POINTS, metavar="X,Y",
        help=f"points of the image, from 0,0 (top left) to 1,1 (default: {' '.join(POINTS)})",
    )  # fmt: skip
    inputs.add_place_arguments(parser)
    parser.add_argument("--head", type=whole_number(1), nargs="+", metavar="N", help="from 1 (default: each)")


def make(args: argparse.Namespace) -> list[str]:
    """Returns what is to be said of the images that could not be read."""
    points = points_of(args.points, "--points")
    trained = inputs.open_model(args)
    model = inputs.require_fat(trained)
    require_attention(model, trained.path)
    places = inputs.places_of(args, model, trained.cfg.MODEL.NAME)
    for stage, block in places:
        for head in args.head or []:
            inputs.require_number(
                "--head", head, model.layers[stage].blocks[block].attn.num_heads, f"stage {stage + 1}"
            )
    wanted = {MEAN, *map(str, args.head)} if args.head else None

    def draw(shot: Shot) -> Iterable[tuple[str, np.ndarray]]:
        for stage, block in places:
            panels = [
                panel
                for panel in attention_panels(model, shot.image, points, stage, block)
                if wanted is None or panel.head in wanted
            ]
            height, width = panels[0].heat.shape
            size = f"{height} x {width} keys" if height * width > 1 else "one key"
            text = f"Attention of stage {stage + 1}, block {block + 1}: each point's weights over {size}, least to largest; "
            text += "every panel has its own scale"
            if height * width == 1:
                text += ". The weight of a single key is always 1: give a greater --img-size"
            yield f"stage {stage + 1}", inputs.introduce(sheet(shot, points, panels), shot, trained, text)

    return inputs.each_image(args, trained, "attention", draw)


def require_attention(model: FAT, path) -> None:
    """Raises CheckpointError for a FAT without global aggregation."""
    if model.layers[0].blocks[0].attn.interaction == "local":
        raise CheckpointError(f"{path}: interaction 'local' has no attention; use a checkpoint with global aggregation")


def attention_panels(
    model: FAT, image: torch.Tensor, points: dict[str, tuple[float, float]], stage: int, block: int = -1
) -> list[Panel]:
    """For each point the mean over heads, then each head, of an image (1, 3, H, W); stage and block count from 0."""
    maps = inspect_fasa(model, image, stage, block)
    height, width = maps.q.shape[2:]
    panels = []
    for query, (x, y) in points.items():
        row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
        weights = maps.attention[0, :, row * width + column].view(-1, *maps.key_size)  # (heads, h, w)
        named = [(MEAN, weights.mean(dim=0)), *((str(number), own) for number, own in enumerate(weights, 1))]
        panels += [Panel("attention", str(stage + 1), query, heat.numpy(), head) for head, heat in named]
    return panels


def sheet(shot: Shot, points: dict[str, tuple[float, float]], panels: Sequence[Panel]) -> np.ndarray:
    """A row per point, or several where there are many heads: the image, then its panels. RGB (height, width, 3)."""
    side = SIDE if len(panels) <= 3 * len(points) else 176
    image = fit(shot.pixels, side)
    each = 1 + len(panels) // len(points)
    columns = math.ceil(each / math.ceil(each / MOST_COLUMNS))
    pictures, captions = [], []
    for number, (query, point) in enumerate(points.items(), 1):
        own = [panel for panel in panels if panel.query == query]
        pictures.append(image.copy())
        captions.append(f"point {number}: {query}")
        for panel in own:
            pictures.append(overlay(image, panel.heat))
            captions.append(panel.caption(panel.head if panel.head == MEAN else f"head {panel.head}", with_range=True))
        for picture in pictures[-len(own) - 1 :]:
            mark(picture, *point, str(number))
        empty = -len(pictures) % columns
        pictures += [np.full_like(image, 255)] * empty
        captions += [""] * empty
    return grid(pictures, captions, side, columns)
