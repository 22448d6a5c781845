"""Masks of objects: polygons and run lengths, as COCO has them, by pycocotools."""

from typing import Any, Optional

import numpy as np
from pycocotools import mask as coco_mask

POINTS = 3  # of a polygon at least

RunLengths = dict[str, Any]  # compressed, as pycocotools has them: `size` (height, width), `counts` bytes


def run_lengths_of(segmentation: Any, size: tuple[int, int]) -> Optional[RunLengths]:
    """The mask of an annotation.

    Args:
        segmentation: polygons, [[x, y, x, y, ...], ...]; or run lengths, compressed or not. Polygons of fewer than three points, with
            an odd number of values, or with values that are no finite numbers are left out.
        size: of the image, (height, width).

    Returns:
        None if there is no mask: nothing of it is left, or it is of an image of another size.
    """
    if isinstance(segmentation, dict):
        return _of_run_lengths(segmentation, size)
    if not isinstance(segmentation, list):
        return None
    polygons = [polygon for polygon in segmentation if _is_polygon(polygon)]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, *size)) if polygons else None


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 2 * POINTS or len(polygon) % 2:
        return False
    return all(type(value) in (int, float) and abs(value) < 1e9 for value in polygon)


def _of_run_lengths(segmentation: dict[str, Any], size: tuple[int, int]) -> Optional[RunLengths]:
    counts = segmentation.get("counts")
    if list(segmentation.get("size") or ()) != list(size):
        return None
    if isinstance(counts, list):
        whole = all(type(count) is int and count >= 0 for count in counts) and sum(counts) == size[0] * size[1]
        return coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size) if whole else None
    if not isinstance(counts, str) or not counts.isascii():
        return None
    runs = runs_in(counts)
    whole = bool(runs) and min(runs) >= 0 and sum(runs) == size[0] * size[1]
    return {"size": list(size), "counts": counts.encode()} if whole else None


def runs_in(counts: str) -> list[int]:
    """The lengths in COCO's compressed form; [] if it is none. pycocotools reads any text, and pixels beyond a short one at random.

    A number is a row of characters with five bits each above '0', the lowest first; the sixth says that more follow, the last
    one's fifth that the number is below 0. From the fourth on, numbers are differences to the length before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if shift == 0 else []


def decode_masks(masks: list[RunLengths], size: tuple[int, int]) -> np.ndarray:
    """(N, height, width), uint8, 0 and 1."""
    if not masks:
        return np.zeros((0, *size), np.uint8)
    return np.ascontiguousarray(coco_mask.decode(masks).transpose(2, 0, 1))


def encode_masks(masks: np.ndarray) -> list[RunLengths]:
    """The run lengths of masks (N, height, width), 0 and 1."""
    if not len(masks):
        return []
    return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
