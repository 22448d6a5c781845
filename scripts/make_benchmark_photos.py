"""Makes JPEG photos of the size that ImageNet's have, for `main.py --benchmark-data`.

    python scripts/make_benchmark_photos.py datasets/photos 64

<output>/train/<photo>/*.jpg and <output>/val/<photo>/*.jpg: random pieces of 500 x 375 px of the two photos that
scikit-learn ships (a Chinese palace, a flower), each saved with the quality that makes it about 102 KB, the mean of
ImageNet's training images. Their chroma is halved both ways (4:2:0), as that of most photos.
"""

import io
import random
import shutil
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

from command_line import Parser, run_script
from utils.errors import ConfigError

WIDTH, HEIGHT = 500, 375
BYTES = 102_000


def as_jpeg(image: Image.Image) -> bytes:
    """The image as a JPEG file of the quality with which its size is nearest to `BYTES`."""
    return min((_save(image, quality) for quality in range(80, 100)), key=lambda data: abs(len(data) - BYTES))


def _save(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument(
        "number", type=int, nargs="?", default=64, help="training images; a quarter as many for validation"
    )
    args = parser.parse_args()
    if args.number < 2:
        parser.error("number: must be 2 or more, one for each class")
    if args.output.exists():
        raise ConfigError(f"{args.output}: is there already; give the name of a new folder")
    rng = random.Random(0)
    photos = load_sample_images()
    names = [Path(name).stem for name in photos.filenames]
    unfinished = args.output.with_name(args.output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    sizes = []
    for split, number in (("train", args.number), ("val", max(2, args.number // 4))):
        for i in range(number):
            label = i % len(names)
            photo = Image.fromarray(photos.images[label])
            left, top = rng.randint(0, photo.width - WIDTH), rng.randint(0, photo.height - HEIGHT)
            data = as_jpeg(photo.crop((left, top, left + WIDTH, top + HEIGHT)))
            path = unfinished / split / names[label] / f"{i:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            sizes.append(len(data))
    unfinished.rename(args.output)  # the set is there whole or not at all
    print(
        f"{args.output}: {len(sizes)} photos of {WIDTH} x {HEIGHT} px, {sum(sizes) / len(sizes) / 1000:.0f} KB on average"
    )
    return 0


if __name__ == "__main__":
    run_script(main)
