"""A small set in COCO's layout: coloured rectangles and ellipses on grey, for tests of detection."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

CATEGORIES = [{"id": 3, "name": "box"}, {"id": 17, "name": "disc"}, {"id": 90, "name": "never"}]
COLOURS = {3: (220, 40, 40), 17: (40, 60, 220)}


def draw_image(
    rng: np.random.Generator, width: int, height: int, count: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """An RGB picture, and an annotation for each of its objects, which do not overlap: one in each corner at most."""
    pixels = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
    objects = []
    for corner in rng.permutation(4)[:count]:
        w, h = (int(side) // 2 - 6 - int(rng.integers(0, 8)) for side in (width, height))
        x, y = 2 + int(corner % 2) * (width // 2), 2 + int(corner // 2) * (height // 2)
        category = int(rng.choice([3, 17]))
        if category == 3:
            polygon = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
        else:
            polygon = cv2.ellipse2Poly((x + w // 2, y + h // 2), (w // 2, h // 2), 0, 0, 360, 20).tolist()
        cv2.fillPoly(pixels, [np.array(polygon)], COLOURS[category])
        (left, top), (right, bottom) = np.min(polygon, 0).tolist(), np.max(polygon, 0).tolist()
        points = [float(value) for point in polygon for value in point]
        area = float(cv2.contourArea(np.array(polygon)))
        objects.append(
            {
                "category_id": category,
                "bbox": [left, top, right - left, bottom - top],
                "area": area,
                "iscrowd": 0,
                "segmentation": [points],
            }
        )
    return pixels, objects


def write_coco(root: Path, **counts: int) -> Path:
    """Writes so many images of each split; every fourth image is without objects."""
    for number, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng(number)
        images, annotations = [], []
        folder = root / split
        folder.mkdir(parents=True)
        for index in range(count):
            width, height = ((72, 64), (64, 80))[index % 2]
            pixels, objects = draw_image(rng, width, height, 0 if index % 4 == 3 else 1 + index % 3)
            name = f"{index:06d}.png"
            Image.fromarray(pixels).save(folder / name)
            images.append({"id": 1000 + 7 * index, "file_name": name, "width": width, "height": height})
            annotations += [{"image_id": images[-1]["id"], **one} for one in objects]
        for place, one in enumerate(annotations):
            one["id"] = 500 + 3 * place
        write_annotations(root, split, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    return root


def annotations_of(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def write_annotations(root: Path, split: str, content: Any) -> Path:
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path
