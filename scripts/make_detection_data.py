"""Makes a small data set for detection, of photographs of things pasted on photographs, in COCO's layout.

    python scripts/make_detection_data.py datasets/stamps_coco

The things are the stamps of Debian's package tuxpaint-stamps-default (GPL; 161 MB, fetched once for this), cut out by their own
alpha masks: animals, food and plants. The grounds are crops of scikit-learn's two photographs. Things and parts of the grounds
are either in the training or in the validation images. With --stand-in the things are discs, squares and triangles cut out of these
photographs, which needs no network, and says little.
"""

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from command_line import Parser, importing, run_script, whole_number
from parts.quickstart.new_folder import new_folder

KINDS = ("animals", "food", "plants")
SHAPES = ("disc", "square", "triangle")
HEIGHT, WIDTH = 64, 96  # px of an image
VAL_SHARE = 0.2  # of the things, and of the grounds' width
SIZES = 0.5, 0.9  # of a thing's longer side over the image's height


class Thing(NamedTuple):
    """What is pasted: its class, its name, and its pixels, uint8 (H, W, 4)."""

    label: int
    name: str
    pixels: np.ndarray


def photographed_things() -> list[Thing]:
    from parts.quickstart.stamps import stamps

    return [Thing(KINDS.index(stamp.kind), stamp.name, stamp.pixels) for stamp in stamps(KINDS, HEIGHT)]


def shapes_of(photographs: list[np.ndarray]) -> list[Thing]:
    """So many of each shape, inverted parts of the photographs."""
    things, rng, side = [], np.random.default_rng(0), HEIGHT
    outlines = {
        0: cv2.ellipse2Poly((side // 2, side // 2), (side // 2 - 1, side // 2 - 1), 0, 0, 360, 10),
        1: np.array([[2, 2], [side - 3, 2], [side - 3, side - 3], [2, side - 3]]),
        2: np.array([[side // 2, 1], [side - 2, side - 2], [1, side - 2]]),
    }
    for number in range(120):
        label = number % len(SHAPES)
        alpha = cv2.fillPoly(np.zeros((side, side), np.uint8), [outlines[label]], 255)
        pixels = 255 - crop_of(photographs[number % 2], rng, side, side)
        things.append(Thing(label, str(number), np.dstack([pixels, alpha])))
    return things


def crop_of(photograph: np.ndarray, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    top, left = (int(rng.integers(0, 1 + room)) for room in (photograph.shape[0] - height, photograph.shape[1] - width))
    return photograph[top : top + height, left : left + width]


def pasted(image: Image.Image, thing: Thing, half: int, rng: np.random.Generator) -> np.ndarray:
    """Pastes a thing into a half of the image, whole; returns where it is opaque, bool (HEIGHT, WIDTH)."""
    stamp = Image.fromarray(thing.pixels)
    factor = min(rng.uniform(*SIZES) * HEIGHT / max(stamp.size), WIDTH / 2 / stamp.width)
    stamp = stamp.resize([max(8, int(side * factor)) for side in stamp.size], Image.Resampling.BILINEAR)
    left = half * WIDTH // 2 + int(rng.integers(0, WIDTH // 2 - stamp.width + 1))
    top = int(rng.integers(0, HEIGHT - stamp.height + 1))
    image.paste(stamp, (left, top), stamp)
    opaque = np.zeros((HEIGHT, WIDTH), bool)
    opaque[top : top + stamp.height, left : left + stamp.width] = np.asarray(stamp)[..., 3] > 127
    return opaque


def annotation_of(opaque: np.ndarray, label: int) -> dict[str, Any]:
    """COCO's, with the outlines of the mask as polygons."""
    outlines, _ = cv2.findContours(opaque.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rows, columns = (np.flatnonzero(opaque.any(axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "category_id": label + 1,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(opaque.sum()),
        "iscrowd": 0,
        "segmentation": [[float(value) for value in outline.flatten()] for outline in outlines if len(outline) > 2],
    }


def is_of_validation(name: str) -> bool:
    return zlib.crc32(name.encode()) / 2**32 < VAL_SHARE


def write_split(
    folder: Path, split: str, count: int, things: list[Thing], photographs: list[np.ndarray], names: tuple[str, ...]
) -> None:
    """Writes a split's images, each with one thing or two, and its annotations."""
    own = [thing for thing in things if is_of_validation(thing.name) == (split == "val")]
    rng = np.random.default_rng([11, split == "val"])
    images, annotations = [], []
    (folder / split).mkdir(parents=True)
    for number in range(count):
        photograph = photographs[int(rng.integers(len(photographs)))]
        border = round(photograph.shape[1] * (1 - VAL_SHARE - 0.05))
        part = photograph[:, :border] if split == "train" else photograph[:, border:]
        image = Image.fromarray(crop_of(part, rng, HEIGHT, WIDTH))
        for half in rng.permutation(2)[: int(rng.integers(1, 3))]:
            thing = own[int(rng.integers(len(own)))]
            entry = annotation_of(pasted(image, thing, int(half), rng), thing.label)
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **entry})
        images.append({"id": number + 1, "file_name": f"{number:05d}.jpg", "width": WIDTH, "height": HEIGHT})
        image.save(folder / split / images[-1]["file_name"], quality=92)
    categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("output", type=Path)
    for split, count in (("train", 600), ("val", 100)):
        parser.add_argument(
            f"--{split}", type=whole_number(1), default=count, metavar="N", help=f"images (default: {count})"
        )
    parser.add_argument("--stand-in", action="store_true", help="shapes in place of the package's photographs")
    args = parser.parse_args()
    if (args.output / "annotations" / "instances_val.json").is_file():
        print(f"{args.output} is there already; nothing to do")
        return 0
    with new_folder(args.output) as unfinished:
        with importing("-r scripts/quickstart-requirements.txt"):
            from sklearn.datasets import load_sample_images
        photographs = list(load_sample_images().images)
        things = shapes_of(photographs) if args.stand_in else photographed_things()
        names = SHAPES if args.stand_in else KINDS
        for split in ("train", "val"):
            write_split(unfinished, split, getattr(args, split), things, photographs, names)
    print(f"{args.output}: {args.train} training and {args.val} validation images of {len(things)} things")
    return 0


if __name__ == "__main__":
    run_script(main)
