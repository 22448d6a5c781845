"""Pictures of what a run sees."""

import textwrap
from typing import Sequence

import cv2
import numpy as np
import torch


def montage(
    images: torch.Tensor, captions: Sequence[str], mean: Sequence[float], std: Sequence[float], columns: int = 8
) -> np.ndarray:
    """A grid of images with captions.

    Args:
        images: (B, C, H, W), normalised by `mean` and `std`; see `three_bands`.
        captions: one per image.

    Returns:
        RGB picture (height, width, 3), uint8.
    """
    images, mean, std = three_bands(images, mean, std)
    scale, shift = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
    pixels = ((images.cpu().float() * scale + shift).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    return grid(list(pixels), captions, max(96, *images.shape[-2:]), columns)


def three_bands(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[torch.Tensor, Sequence[float], Sequence[float]]:
    """What is shown of normalised images (..., C, H, W) as red, green and blue, (..., 3, H, W), with the means and standard
    deviations that bring it to 0 .. 1: of more than three bands the first three, of one or two the first, in grey.

    Floats may lie anywhere. Where means or standard deviations say that they do not lie between 0 and 1, black is 2.5
    standard deviations below the mean, and white as many above.
    """
    channels = images.shape[-3]
    if channels == 3:
        return images, mean, std
    shown = [0, 1, 2] if channels > 3 else [0, 0, 0]
    within = all(0 <= level <= 1 for level in mean) and all(spread <= 0.5 for spread in std)
    if not within:
        return images[..., shown, :, :], [0.5] * 3, [0.2] * 3
    return images[..., shown, :, :], [mean[i] for i in shown], [std[i] for i in shown]


def grid(pictures: Sequence[np.ndarray], captions: Sequence[str], side: int, columns: int) -> np.ndarray:
    """RGB pictures (height, width, 3), uint8, each in a square of `side` px under its caption, `columns` in a row.

    The lines of a caption are cut where they are too long.
    """
    tiles = []
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    for picture, caption in zip(pictures, captions, strict=True):
        tile = in_square(picture, side)
        tile = cv2.copyMakeBorder(tile, 2 + 16 * lines, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for number, line in enumerate(caption.split("\n")):
            text = line[: max(16, side // 7)].encode("ascii", "replace").decode()
            cv2.putText(tile, text, (4, 13 + 16 * number), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return cv2.vconcat([cv2.hconcat(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def in_square(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture (height, width, 3) with a longer side of so many px; what is missing of the square is white."""
    longer = max(picture.shape[:2])
    size = [max(1, round(length * side / longer)) for length in picture.shape[1::-1]]
    tile = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_NEAREST)
    below, beside = side - tile.shape[0], side - tile.shape[1]
    return cv2.copyMakeBorder(tile, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map's values as colours, blue for its least to red for its largest, half transparent over a picture.

    Args:
        picture: RGB (height, width, 3), uint8.
        heat: (h, w), finite; it is stretched to the picture. One that is the same everywhere has no colours: the picture
            comes back in grey.
    """
    low, high = float(heat.min()), float(heat.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    levels = cv2.resize(
        ((heat - low) / (high - low) * 255).astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR
    )
    colours = cv2.applyColorMap(levels.round().astype(np.uint8), cv2.COLORMAP_JET)
    return cv2.addWeighted(picture, 0.5, cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), 0.5, 0)


def titled(picture: np.ndarray, text: str) -> np.ndarray:
    """An RGB picture (height, width, 3) with lines of text above it, broken where they are too long."""
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, max(16, picture.shape[1] // 6))]
    picture = cv2.copyMakeBorder(picture, 16 * len(lines) + 6, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    for number, line in enumerate(lines, 1):
        place = (4, 16 * number - 3)
        cv2.putText(
            picture,
            line.encode("ascii", "replace").decode(),
            place,
            cv2.FONT_HERSHEY_SIMPLEX,
            0.38,
            (0, 0, 0),
            1,
            cv2.LINE_AA,
        )
    return picture


def encode_png(picture: np.ndarray) -> bytes:
    """An RGB picture (height, width, 3) as a PNG file's bytes."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def encode_jpeg(picture: np.ndarray) -> bytes:
    """An RGB picture (height, width, 3) as a JPEG file's bytes, in a quality for looking at."""
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def pixels_of(image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """A normalised image (C, height, width) as an RGB picture (height, width, 3), uint8; see `three_bands`."""
    image, mean, std = three_bands(image, mean, std)
    scale, shift = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
    levels = (image.cpu().float() * scale + shift) * 255
    return levels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def fitted(picture: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The picture made smaller, if its longer side has more than so many px, and the factor."""
    scale = min(1.0, side / max(picture.shape[:2]))
    size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
    return (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture), scale


def draw_boxes(
    picture: np.ndarray,
    boxes: Sequence[Sequence[float]],
    colours: Sequence[Sequence[int]],
    captions: Sequence[str] = (),
) -> np.ndarray:
    """A copy of an RGB picture with boxes (x1, y1, x2, y2 in px), each in its colour and with its caption, if there are any."""
    drawn = np.ascontiguousarray(picture).copy()
    for number, (box, colour) in enumerate(zip(boxes, colours, strict=True)):
        x1, y1, x2, y2 = (int(round(value)) for value in box)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), tuple(colour), 2)
        if captions:
            text = captions[number].encode("ascii", "replace").decode()
            place = (x1 + 2, max(y1 - 4, 11))
            cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 3, cv2.LINE_AA)
            cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return drawn


def draw_masks(picture: np.ndarray, masks: np.ndarray, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """A copy of an RGB picture with masks (N, height, width), each half transparent in its colour."""
    drawn = np.ascontiguousarray(picture).copy()
    for mask, colour in zip(masks.astype(bool), colours, strict=True):
        drawn[mask] = (drawn[mask] * 0.5 + np.array(colour) * 0.5).astype(np.uint8)
    return drawn


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour (RGB) by a number, such as a label's; neighbours differ."""
    hue = np.array([[[number * 67 % 180, 220, 230]]], dtype=np.uint8)
    red, green, blue = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue
