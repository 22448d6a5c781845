"""Pictures of what a run sees."""

from typing import Sequence

import cv2
import numpy as np
import torch


def montage(
    images: torch.Tensor, captions: Sequence[str], mean: Sequence[float], std: Sequence[float], columns: int = 8
) -> np.ndarray:
    """A grid of images with captions.

    Args:
        images: (B, 3, H, W), normalised by `mean` and `std`.
        captions: one per image.

    Returns:
        RGB picture (height, width, 3), uint8.
    """
    scale, shift = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
    pixels = ((images.cpu().float() * scale + shift).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    side = max(96, images.shape[-1])
    tiles = []
    for image, caption in zip(pixels, captions):
        tile = cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=cv2.INTER_NEAREST)
        tile = cv2.copyMakeBorder(tile, 18, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        cv2.putText(tile, caption[:16].encode("ascii", "replace").decode(), (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return cv2.vconcat([cv2.hconcat(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def encode_png(picture: np.ndarray) -> bytes:
    """An RGB picture (height, width, 3) as a PNG file's bytes."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
