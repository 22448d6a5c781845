"""Panels of a picture: maps over an image or as colours, points of an image, what a model takes it for."""

from dataclasses import dataclass
from typing import Sequence

import cv2
import matplotlib
import numpy as np
import torch

from engine.inference.trained import Trained
from utils.errors import ConfigError

SIDE = 224  # px of a panel
MOST_POINTS = 8


@dataclass(frozen=True)
class Panel:
    """A map that lies over the image."""

    kind: str  # attention or grad-cam
    stage: str  # from 1, or a layer's name
    query: str  # x,y of the image, 0 .. 1
    heat: np.ndarray  # (h, w)
    head: str = ""  # from 1, or mean

    @property
    def peak(self) -> tuple[float, float]:
        """x and y of the largest value's cell, its centre, 0 .. 1 of the image."""
        y, x = np.unravel_index(self.heat.argmax(), self.heat.shape)
        return (x + 0.5) / self.heat.shape[1], (y + 0.5) / self.heat.shape[0]

    @property
    def note(self) -> str:
        """What there is to say of a map without a peak."""
        if self.heat.size == 1:
            return "one key" if self.kind == "attention" else "one position"
        return "" if self.heat.any() else "zero everywhere"

    def caption(self, text: str, with_range: bool = False) -> str:
        """What stands above it: the text, and the note or (`with_range`) the least and the largest value."""
        if self.note:
            return f"{text}: {self.note}"
        return f"{text}: {span(self.heat)}" if with_range else text


def span(values: np.ndarray) -> str:
    """The least and the largest value."""
    return f"{values.min():.2g} to {values.max():.2g}"


def fit(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """An RGB picture (height, width, 3) with a longer side of `side` px; a smaller one keeps its pixels' edges."""
    longer = max(pixels.shape[:2])
    size = [max(1, round(length * side / longer)) for length in pixels.shape[1::-1]]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if longer > side else cv2.INTER_NEAREST)


def coloured(values: np.ndarray) -> np.ndarray:
    """A map (h, w) as RGB (h, w, 3), uint8: from 0 (dark) to its largest value; with values below 0 blue, 0 being white and
    what is above red, both sides on one scale.
    """
    largest = np.abs(values).max() or 1.0
    signed = values.min() < 0
    levels = values / largest
    colours = matplotlib.colormaps["RdBu_r" if signed else "viridis"]((levels + 1) / 2 if signed else levels)
    return (colours[..., :3] * 255).round().astype(np.uint8)


def mark(picture: np.ndarray, x: float, y: float, text: str) -> None:
    """Draws a numbered point into a picture, white in black, so that it is seen on anything."""
    height, width = picture.shape[:2]
    place = (min(int(x * width), width - 1), min(int(y * height), height - 1))
    beside = (min(place[0] + 7, width - 12), max(place[1] - 6, 12))
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.circle(picture, place, 4, colour, width, cv2.LINE_AA)
    cv2.rectangle(picture, (beside[0] - 2, beside[1] - 11), (beside[0] + 9, beside[1] + 2), (0, 0, 0), cv2.FILLED)
    cv2.putText(picture, text, beside, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)


def points_of(texts: Sequence[str], flag: str) -> dict[str, tuple[float, float]]:
    """Points X,Y of an image by their texts.

    Raises:
        ConfigError: one that is no point, or too many.
    """
    points = {text: _point(text, flag) for text in texts}
    if len(points) > MOST_POINTS:
        raise ConfigError(f"{flag}: {len(points)} points; give at most {MOST_POINTS}")
    return points


def _point(text: str, flag: str) -> tuple[float, float]:
    try:
        x, y = (float(number) for number in text.split(","))
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ConfigError(f"{flag}: {text!r} is no point of the image; give X,Y between 0,0 (top left) and 1,1")
    return x, y


def predict(trained: Trained, image: torch.Tensor) -> list[tuple[str, float]]:
    """The first five classes of an image (1, 3, H, W) and their probabilities."""
    with torch.no_grad():
        probabilities = trained.probabilities(trained.model(image))[0]
    top = probabilities.topk(min(5, len(trained.classes)))
    return [(trained.names[label], share) for label, share in zip(top.indices.tolist(), top.values.tolist())]


def said(prediction: tuple[str, float]) -> str:
    return f"{prediction[0]} ({100 * prediction[1]:.1f} %)"
