"""What FASA computes of an image, per stage: the query, its local and global side, their interaction, and its output.

The upper row compares the two sides and what they give together over the image: the norm over channels at each position, from
blue (its least value) to red (its largest). Below, each map by itself: norm and mean over channels, and chosen channels. A map
with values below 0 is blue there, red above and white at 0, other maps go from dark (0) to bright; each panel has its own
scale, its least and largest value stand above it.
"""

import argparse
from typing import Iterable, Optional, Sequence

import numpy as np

from models import FAT
from models.inspection import FASAMaps, inspect_fasa
from utils.errors import ConfigError
from utils.pictures import grid, overlay

from . import inputs
from .inputs import Shot
from .panels import coloured, fit, span

SIDE = 176  # px of a panel
MOST_CHANNELS = 16
NAMES = {"q": "query Q", "local": "local l'", "global": "global g", "fused": "fused", "output": "output"}
OVER_IMAGE = ("local", "global", "fused")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inputs.add_image_arguments(parser)
    inputs.add_place_arguments(parser)
    parser.add_argument(
        "--channels",
        type=int,
        nargs="+",
        metavar="CHANNEL",
        help=f"from 0, at most {MOST_CHANNELS} (default: 4, evenly spaced)",
    )


def make(args: argparse.Namespace) -> list[str]:
    """Returns what is to be said of the images that could not be read."""
    trained = inputs.open_model(args)
    model = inputs.require_fat(trained)
    places = inputs.places_of(args, model, trained.cfg.MODEL.NAME)
    channels = {place: channels_shown(args.channels, channels_of(model, *place), 4) for place in places}

    def draw(shot: Shot) -> Iterable[tuple[str, np.ndarray]]:
        for stage, block in places:
            inspected = inspect_fasa(model, shot.image, stage, block)
            maps = maps_of(inspected)
            height, width = inspected.q.shape[2:]
            size = f"{inspected.q.shape[1]} x {height} x {width}"
            text = f"FASA of stage {stage + 1}, block {block + 1}, interaction {inspected.fasa.interaction}: maps of {size}"
            missing = {"local": "It has no global side g.", "global": "It has no local side l'."}.get(
                inspected.fasa.interaction
            )
            text = ". ".join(filter(None, [text, missing]))
            yield f"stage {stage + 1}", inputs.introduce(sheet(shot, maps, channels[stage, block]), shot, trained, text)

    return inputs.each_image(args, trained, "fasa", draw)


def channels_of(model: FAT, stage: int, block: int) -> int:
    return model.layers[stage].blocks[block].attn.q.out_channels


def channels_shown(asked: Optional[Sequence[int]], size: int, number: int = 8) -> list[int]:
    """The channels that are asked for, or so many evenly spaced ones.

    Raises:
        ConfigError: they are no list of a map's `size` channels.
    """
    if not asked:
        return np.linspace(0, size - 1, number).round().astype(int).tolist()
    outside = [channel for channel in asked if not 0 <= channel < size]
    if outside:
        raise ConfigError(f"--channels: there is no {outside[0]}; the stage has {size}, counted from 0")
    if len(set(asked)) < len(asked) or len(asked) > MOST_CHANNELS:
        raise ConfigError(f"--channels: give each once, and at most {MOST_CHANNELS}")
    return list(asked)


def maps_of(maps: FASAMaps) -> dict[str, np.ndarray]:
    """The maps that the module's interaction has, (C, H, W) each, by `NAMES`; `fused` is what the two sides give together."""
    sides = {"local": ["local"], "global": ["global"]}.get(maps.fasa.interaction, ["local", "global", "fused"])
    attributes = {
        "q": "q",
        "local": "local_aggregation",
        "global": "global_aggregation",
        "fused": "interaction",
        "output": "output",
    }
    return {name: getattr(maps, attributes[name])[0].numpy() for name in ("q", *sides, "output")}


def sheet(shot: Shot, maps: dict[str, np.ndarray], channels: list[int]) -> np.ndarray:
    """All panels, RGB (height, width, 3); a channel that is not in each map (`concat` has 2C) is that of the first C."""
    image = fit(shot.pixels, SIDE)
    columns = max(1 + len(OVER_IMAGE), 2 + len(channels))
    pictures, captions = [image], ["image"]
    for name in OVER_IMAGE:
        if name in maps:
            norm = np.linalg.norm(maps[name], axis=0)
            pictures.append(overlay(image, norm))
            captions.append(f"{NAMES[name]}: norm\n{span(norm)}")
    for name, values in maps.items():
        empty = -len(pictures) % columns
        pictures += [np.full_like(image, 255)] * empty
        captions += [""] * empty
        shown = {
            "norm": np.linalg.norm(values, axis=0),
            "mean": values.mean(axis=0),
            **{f"channel {c}": values[c] for c in channels},
        }
        pictures += map(coloured, shown.values())
        captions += [f"{NAMES[name]}: {what}\n{span(own)}" for what, own in shown.items()]
    return grid(pictures, captions, SIDE, columns)
