"""Grad-CAM (arXiv 1610.02391): where evidence for a class lies, at a FAT's stages and final norm, or at layers of any model.

Each panel has its own scale, from blue (its least value) to red (its largest), which stand above it.

`models.inspection.grad_cam` computes it, as for the paper's overlays. The grad-cam package is not used: it gives maps that are
scaled to 0 .. 1 and to the image, so that a map that is 0 everywhere and the values themselves cannot be told; its releases
up to 1.5.5 require opencv-python, which overwrites the files of opencv-python-headless.
"""

import argparse
from typing import Iterable, Optional, Sequence

import numpy as np
import torch
from torch import nn

from engine.inference.trained import Trained
from models import FAT
from models.inspection import grad_cam
from utils.errors import ConfigError, did_you_mean
from utils.pictures import grid, overlay

from . import inputs
from .inputs import Shot
from .panels import SIDE, Panel, fit, said

COLUMNS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inputs.add_image_arguments(parser)
    parser.add_argument(
        "--class", dest="target", metavar="CLASS", help="by name, or label from 0 (default: the predicted one)"
    )
    parser.add_argument(
        "--layer", nargs="+", metavar="NAME",
        help="modules whose output maps are used, such as layers.2 (default: of a FAT each stage and the final norm, else the last feature map)",
    )  # fmt: skip


def make(args: argparse.Namespace) -> list[str]:
    """Returns what is to be said of the images that could not be read."""
    trained = inputs.open_model(args)
    layers = layers_of(trained, args.layer)
    label = None if args.target is None else label_of(trained, args.target)

    def draw(shot: Shot) -> Iterable[tuple[str, np.ndarray]]:
        panels = grad_cam_panels(trained.model, shot.image, layers, label)
        with torch.no_grad():
            probabilities = trained.probabilities(trained.model(shot.image))[0]
        shown = int(probabilities.argmax()) if label is None else label
        aim = said((trained.names[shown], float(probabilities[shown])))
        text = f"Grad-CAM of class {aim}, least to largest value; every panel has its own scale"
        yield "", inputs.introduce(sheet(shot, panels), shot, trained, text)

    return inputs.each_image(args, trained, "grad-cam", draw)


def layers_of(trained: Trained, names: Optional[Sequence[str]] = None) -> dict[str, nn.Module]:
    """Modules by name, a FAT's stages by their numbers from 1.

    Raises:
        ConfigError: no such module, or none is known to give the model's last feature map.
    """
    model = trained.model
    if names:
        modules = dict(model.named_modules())
        missing = [name for name in names if not name or name not in modules]
        if missing:
            raise ConfigError(
                f"--layer: {trained.cfg.MODEL.NAME} has no module {missing[0]!r}; {did_you_mean(missing[0], filter(None, modules))}"
            )
        return {name: modules[name] for name in names}
    if isinstance(model, FAT):
        return {**{str(number): layer for number, layer in enumerate(model.layers, 1)}, "norm": model.norm}
    try:
        name = model.feature_info[-1]["module"]
        return {name: model.get_submodule(name)}
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"--layer: {trained.cfg.MODEL.NAME} does not say which module gives its last feature map; name one"
        ) from error


def label_of(trained: Trained, text: str) -> int:
    """A class's label by its name, what it is called, or the label.

    Raises:
        ConfigError: there is no such class, or several are called so.
    """
    if text in trained.classes:
        return trained.classes.index(text)
    called = [label for label, name in enumerate(trained.names) if name.lower() == text.lower()]
    if len(called) > 1:
        raise ConfigError(
            f"--class: {text!r} are {', '.join(trained.classes[label] for label in called)}; give one of these"
        )
    if called:
        return called[0]
    if text.isascii() and text.isdigit() and int(text) < len(trained.classes):
        return int(text)
    near = did_you_mean(text, dict.fromkeys([*trained.classes, *trained.names]))
    raise ConfigError(f"--class: there is no {text!r} among the {len(trained.classes)} classes; {near}")


def grad_cam_panels(
    model: nn.Module, image: torch.Tensor, layers: dict[str, nn.Module], label: Optional[int] = None
) -> list[Panel]:
    """Of an image (1, 3, H, W) at each layer, of a class or the predicted one.

    Raises:
        ConfigError: a layer gives no maps.
    """
    target = None if label is None else torch.tensor([label])
    panels = []
    for name, layer in layers.items():
        try:
            if getattr(model, "output_fmt", "NCHW") != "NCHW":  # its maps have another order of axes
                raise ValueError(
                    f"{type(model).__name__} gives maps with channels last, which Grad-CAM here is not for"
                )
            panels.append(Panel("grad-cam", name, "", grad_cam(model, image, layer, target)[0][0].numpy()))
        except ValueError as error:
            raise ConfigError(f"--layer: {name}: {error}; choose another layer or model") from error
    return panels


def sheet(shot: Shot, panels: Sequence[Panel]) -> np.ndarray:
    """The image and the panels, RGB (height, width, 3)."""
    image = fit(shot.pixels)
    pictures = [image, *(overlay(image, panel.heat) for panel in panels)]
    captions = [
        "image",
        *(
            panel.caption(f"stage {panel.stage}" if panel.stage.isdigit() else panel.stage, with_range=True)
            for panel in panels
        ),
    ]
    return grid(pictures, captions, SIDE, min(len(pictures), COLUMNS))
