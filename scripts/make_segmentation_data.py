"""Makes a small data set for segmentation, of photographs of things pasted on photographs, as images with masks.

    python scripts/make_segmentation_data.py datasets/stamps

The things are the stamps of Debian's package tuxpaint-stamps-default (GPL; 161 MB, fetched once for this), cut out by their own
alpha masks: animals, food and plants. The grounds are crops of scikit-learn's two photographs. Things and parts of the grounds
are either in the training or in the validation images. With --stand-in the things are blurred shapes with the photographs' colours,
which needs no network, and says little.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from command_line import Parser, importing, run_script, whole_number
from parts.quickstart.new_folder import new_folder

KINDS = ("animals", "food", "plants")
HEIGHT, WIDTH = 96, 128  # px of an image
VAL_SHARE = 0.2  # of the things, and of the grounds' width
SIZES = 0.45, 0.85  # of a thing's longer side over the image's height


class Thing(NamedTuple):
    label: int  # in the mask
    name: str
    pixels: np.ndarray  # uint8 (H, W, 4)


def photographed_things() -> list[Thing]:
    from parts.quickstart.stamps import stamps

    return [Thing(1 + KINDS.index(stamp.kind), stamp.name, stamp.pixels) for stamp in stamps(KINDS, HEIGHT)]


def stand_ins(photographs: list[Image.Image]) -> list[Thing]:
    """A disc, a square and a triangle, each of many sizes and colours."""
    things, rng = [], np.random.default_rng(0)
    for number in range(120):
        label, side = 1 + number % 3, int(rng.integers(60, HEIGHT))
        alpha = Image.new("L", (side, side))
        corners = [
            [(2, 2), (side - 2, side - 2)],
            [(4, 4), (side - 4, side - 4)],
            [(side // 2, 1), (1, side - 2), (side - 2, side - 2)],
        ]
        draw = ImageDraw.Draw(alpha)
        (draw.ellipse, draw.rectangle, draw.polygon)[label - 1](corners[label - 1], fill=255)
        part = random_crop(photographs[number % 2], rng, side, side)
        colour = Image.new("RGB", part.size, tuple(int(level) for level in rng.integers(0, 256, 3)))
        image = Image.blend(part, colour, 0.5)
        image.putalpha(alpha.filter(ImageFilter.GaussianBlur(0.7)))
        things.append(Thing(label, f"{number}", np.asarray(image)))
    return things


def random_crop(photograph: Image.Image, rng: np.random.Generator, width: int, height: int) -> Image.Image:
    left, top = (int(rng.integers(0, 1 + room)) for room in (photograph.width - width, photograph.height - height))
    return photograph.crop((left, top, left + width, top + height))


def composed(ground: Image.Image, things: list[Thing], rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """A ground with one thing or two on it, and the mask, in which 0 is the ground."""
    image, labels = ground.convert("RGB"), np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(int(rng.integers(1, 3))):
        thing = things[int(rng.integers(len(things)))]
        stamp = Image.fromarray(thing.pixels)
        factor = rng.uniform(*SIZES) * HEIGHT / max(stamp.size)
        size = tuple(max(8, round(side * factor)) for side in stamp.size)
        stamp = stamp.resize(size, Image.Resampling.BILINEAR)
        left, top = (int(rng.integers(0, max(1, room - side) + 1)) for room, side in zip((WIDTH, HEIGHT), size))
        image.paste(stamp, (left, top), stamp)
        opaque = np.asarray(stamp)[..., 3] > 127
        part = labels[top : top + size[1], left : left + size[0]]
        part[opaque[: part.shape[0], : part.shape[1]]] = thing.label
    return image, Image.fromarray(labels)


def is_of_validation(name: str) -> bool:
    return zlib.crc32(name.encode()) / 2**32 < VAL_SHARE


def write(folder: Path, things: list[Thing], photographs: list[Image.Image], counts: dict[str, int]) -> None:
    for number, (split, count) in enumerate(counts.items()):
        own = [thing for thing in things if is_of_validation(thing.name) == (split == "val")]
        rng = np.random.default_rng([7, number])
        places = [folder / kind / split for kind in ("images", "annotations")]
        for place in places:
            place.mkdir(parents=True)
        for i in range(count):
            photograph = photographs[int(rng.integers(len(photographs)))]
            border = round(photograph.width * (1 - VAL_SHARE - 0.05))
            box = (
                (0, 0, border, photograph.height)
                if split == "train"
                else (border, 0, photograph.width, photograph.height)
            )
            ground = random_crop(photograph.crop(box), rng, WIDTH, HEIGHT)
            image, mask = composed(ground, own, rng)
            image.save(places[0] / f"{i:04d}.jpg", quality=92)
            mask.save(places[1] / f"{i:04d}.png")


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--train", type=whole_number(1), default=800, metavar="N", help="training images (default: 800)"
    )
    parser.add_argument(
        "--val", type=whole_number(1), default=120, metavar="N", help="validation images (default: 120)"
    )
    parser.add_argument("--stand-in", action="store_true", help="shapes in place of the package's photographs")
    args = parser.parse_args()
    if (args.output / "classes.txt").is_file():
        print(f"{args.output} is there already; nothing to do")
        return 0
    with new_folder(args.output) as unfinished:
        with importing("-r scripts/quickstart-requirements.txt"):
            from sklearn.datasets import load_sample_images
        photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
        things = stand_ins(photographs) if args.stand_in else photographed_things()
        write(unfinished, things, photographs, {"train": args.train, "val": args.val})
        names = ("disc", "square", "triangle") if args.stand_in else ("animal", "food", "plant")
        (unfinished / "classes.txt").write_text("\n".join(("ground", *names)) + "\n")
    print(f"{args.output}: {args.train} training and {args.val} validation images of {len(things)} things")
    return 0


if __name__ == "__main__":
    run_script(main)
