"""Photographs with annotated objects, as COCO has them: DATA_PATH/annotations/instances_<split>.json and DATA_PATH/<split>/*."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, Sequence

import numpy as np

from utils.errors import DataError
from utils.files import open_regular
from utils.rng import fingerprint

from ..coco_file import CocoFile, read_coco_file
from ..decode import decode_image
from ..workers import reading
from .reading import OR_SKIP, printable, read_image

KEPT = ("id", "bbox", "area", "iscrowd", "segmentation")  # of an annotation


class CocoSource:
    """The images of one split, by rising id.

    `load` gives an image's target as a dictionary: `image_id`, `height` and `width` of the file, and `objects`, each with
    its `label`, `id`, `bbox` (x, y, width, height in px), `area`, `iscrowd` and, if the file has it, `segmentation`.

    Args:
        root: the folder that holds the annotations and the images' folder.
        split: such as train2017.
        decode: open file -> image.
        classes: the categories' names in label order; None: by their ids. They may have more than the file has.
        with_empty: whether images without objects (crowds are none) are there, too.

    Attributes:
        category_ids: of each label, the file's id; None where the file has no such category.
        groups: 0 for images that are wider than high, 1 for the others: which images a batch is made of.

    Raises:
        DataError: a file that is missing or does not fit, see `read_coco_file`; no object at all; at `load`, no image.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        decode: Callable[[BinaryIO], Any] = decode_image,
        classes: Optional[Sequence[str]] = None,
        with_empty: bool = True,
    ):
        path = root / "annotations" / f"instances_{split}.json"
        reading(str(path))
        file = read_coco_file(path)
        self.decode, self.root = decode, os.fsencode(root / split)
        self.classes = list(classes or file.names)
        labels = _labels(file, self.classes)
        ids = {label: number for number, label in labels.items()}
        self.category_ids = [ids.get(label) for label in range(len(self.classes))]
        images = [image for image in file.images if with_empty or any(map(is_object, file.objects[image["id"]]))]
        if not any(is_object(entry) for entries in file.objects.values() for entry in entries):
            raise DataError(
                str(path),
                "has no object (that is no crowd)",
                "there is nothing to learn or to measure; give another file",
            )
        _require_files(root / split, [image["file_name"] for image in images], path)
        self.notes = _notes(path, file, len(images))
        # Arrays, not lists of objects: workers share their memory, as no reference counts in it change.
        self.names = np.array([os.fsencode(image["file_name"]) for image in images])
        self.groups = np.array([int(image["width"] <= image["height"]) for image in images], np.int8)
        targets = [_target(image, file.objects[image["id"]], labels) for image in images]
        self.ends = np.cumsum([0, *map(len, targets)])
        self.targets = np.frombuffer(b"".join(targets), np.uint8)
        self.fingerprint = fingerprint([*self.names.tolist(), self.targets.tobytes(), repr(self.classes).encode()])

    @classmethod
    def open(
        cls,
        dataset: str,
        data_path: str,
        split: str,
        decode: Callable[[BinaryIO], Any],
        classes: Optional[Sequence[str]],
        with_empty: bool,
    ) -> "CocoSource":
        """The split of DATA.DATASET, `coco` or `coco/<path>`, which adds a path to `data_path`."""
        return cls(Path(data_path) / dataset.partition("/")[2], split, decode, classes, with_empty)

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def name(self, index: int) -> str:
        return printable(self._path(index))

    def load(self, index: int) -> tuple[Any, dict[str, Any]]:
        opened = partial(open_regular, self._path(index))
        image = read_image(self.name(index), opened, self.decode, f"replace the file{OR_SKIP}")
        return image, self.target(index)

    def target(self, index: int) -> dict[str, Any]:
        """What is annotated in an image, see above."""
        return json.loads(self.targets[self.ends[index] : self.ends[index + 1]].tobytes())

    def _path(self, index: int) -> str:
        return os.fsdecode(os.path.join(self.root, self.names[index]))


def is_object(entry: dict[str, Any]) -> bool:
    """Whether an annotation is of an object, not of a crowd."""
    return not entry.get("iscrowd")


def _labels(file: CocoFile, classes: Sequence[str]) -> dict[int, int]:
    """The file's category ids -> labels."""
    unknown = sorted(set(file.names) - set(classes))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise DataError(
            str(file.path),
            f"has categories that the model does not know: {', '.join(map(repr, unknown[:3]))}{more}",
            "give both splits the same categories",
        )
    return {category["id"]: classes.index(category["name"]) for category in file.categories}


def _require_files(folder: Path, names: list[str], annotations: Path) -> None:
    places = {name.rpartition("/")[0] for name in names}
    there: set[str] = set()
    for place in places:
        try:
            there |= {f"{place}/{name}" if place else name for name in os.listdir(folder / place)}
        except OSError as error:
            remedy = "DATA.DATA_PATH (--data-path) must hold annotations/instances_<split>.json and <split>/*"
            raise DataError(str(folder / place), f"cannot be looked into ({error.strerror})", remedy) from error
    missing = [name for name in names if name not in there]
    if missing:
        what = f"names {len(missing)} images that are not in {folder}, such as {missing[0]!r}"
        raise DataError(str(annotations), what, "copy them there, or remove them and their annotations from the file")


def _target(image: dict[str, Any], entries: list[dict[str, Any]], labels: dict[int, int]) -> bytes:
    objects = [
        {"label": labels[entry["category_id"]], **{key: entry[key] for key in KEPT if key in entry}}
        for entry in entries
    ]
    target = {"image_id": image["id"], "height": image["height"], "width": image["width"], "objects": objects}
    return json.dumps(target).encode()


def _notes(path: Path, file: CocoFile, kept: int) -> list[str]:
    """What is left out, and what can have no figure."""
    notes = []
    if kept < len(file.images):
        notes.append(f"{path}: left out {len(file.images) - kept} images without objects (DET.EMPTY_IMAGES)")
    seen = {entry["category_id"] for entries in file.objects.values() for entry in entries}
    unseen = [category["name"] for category in file.categories if category["id"] not in seen]
    if unseen:
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        notes.append(f"{path}: no image has {', '.join(unseen[:3])}{more}")
    return notes
