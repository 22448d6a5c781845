"""Images beside their masks: two folders, in which a mask's name follows from its image's."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Optional, Sequence

import numpy as np

from utils.errors import ConfigError, DataError, did_you_mean
from utils.files import open_regular
from utils.rng import fingerprint

from ..decode import decode_image
from ..image_files import is_image, notes_of
from ..workers import reading, waiting
from .reading import OR_SKIP, printable, read_image


@dataclass(frozen=True)
class Layout:
    """Where a data set has its images and masks, in DATA_PATH; {split} is the split's name."""

    images: str
    masks: str
    image_end: str = ""  # what a mask's name lacks at its end, before the suffix,
    mask_end: str = ""  # and what it has instead
    listed: str = ""  # the file that lists the split's images without their suffixes; empty: all are the split's


PAIRED = Layout("images/{split}", "annotations/{split}")
LAYOUTS = {
    "masks": PAIRED,
    "ade20k": PAIRED,
    "cityscapes": Layout("leftImg8bit/{split}", "gtFine/{split}", "_leftImg8bit", "_gtFine_labelTrainIds"),
    "voc": Layout("JPEGImages", "SegmentationClass", listed="ImageSets/Segmentation/{split}.txt"),
}
MASK_SUFFIX = ".png"


class MaskSource:
    """The images of one split, at any depth, and the paths of their masks.

    Args:
        root: the data set's folder.
        split: the name of the split.
        layout: where it has what.
        classes: their names, in label order.
        decode: open file -> image.

    Raises:
        DataError: a folder is missing or without images, or an image is without its mask; at `load`, a file is no image.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        layout: Layout,
        classes: Sequence[str],
        decode: Callable[[BinaryIO], Any] = decode_image,
    ):
        self.classes, self.decode = list(classes), decode
        self.images, self.masks = (root / place.format(split=split) for place in (layout.images, layout.masks))
        files, masks = (list(_files(folder)) for folder in (self.images, self.masks))
        keys = sorted(name for name in files if is_image(name))
        others = [name for name in files if not is_image(name)]
        if layout.listed:
            keys = _only_listed(keys, root / layout.listed.format(split=split), self.images)
        if not keys:
            raise DataError(f"{self.images}: holds no images; check DATA.DATA_PATH (--data-path) and the split's name")
        pairs = [(key, _mask_of(key, layout)) for key in keys]
        self._require_masks(pairs, set(masks))
        without = len(set(masks) - {mask for _, mask in pairs} - set(others)) if not layout.listed else 0
        self.notes = notes_of(self.images, others)
        if without and not layout.mask_end:  # Cityscapes has several files for each image
            self.notes.append(f"{self.masks}: left out {without} files that are no image's mask")
        # Arrays, not lists: workers share their memory, as no reference counts in it change.
        self.keys = np.array([os.fsencode(key) for key, _ in pairs])
        self.mask_keys = np.array([os.fsencode(mask) for _, mask in pairs])
        self.fingerprint = fingerprint(self.keys.tolist())

    def _require_masks(self, pairs: Sequence[tuple[str, str]], masks: set[str]) -> None:
        missing = [(key, mask) for key, mask in pairs if mask not in masks]
        if missing:
            key, mask = missing[0]
            more = f" (and {len(missing) - 1} more of {len(pairs)} images)" if len(missing) > 1 else ""
            made = "; cityscapesscripts' createTrainIdLabelImgs makes them" if mask.endswith("TrainIds.png") else ""
            raise DataError(
                f"{printable(str(self.masks / mask))}: is missing, the mask of {printable(str(self.images / key))}{more}; "
                f"give every image a mask{made}"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return os.fsdecode(self.keys[index])

    def name(self, index: int) -> str:
        return printable(str(self.images / self.key(index)))

    def load(self, index: int) -> tuple[Any, str]:
        """The image, and its mask's path."""
        path = self.images / self.key(index)
        image = read_image(self.name(index), lambda: open_regular(path), self.decode, f"replace it{OR_SKIP}")
        return image, str(self.masks / os.fsdecode(self.mask_keys[index]))


def open_masks(
    dataset: str,
    split: str,
    data_path: str,
    classes: Sequence[str],
    decode: Callable[[BinaryIO], Any] = decode_image,
    timeout: float = 0.0,
) -> MaskSource:
    """The images and masks of one split.

    Args:
        dataset: a name in `LAYOUTS`, the config's DATA.DATASET.
        timeout: seconds without a further folder after which the wait is an error; 0: none.

    Raises:
        OutputError: after the timeout.
        ConfigError: unknown `dataset`.
        DataError: as `MaskSource`.
    """
    if dataset not in LAYOUTS:
        raise ConfigError(f"DATA.DATASET is {dataset!r}; with TASK segmentation, {did_you_mean(dataset, LAYOUTS)}")
    layout = LAYOUTS[dataset]
    if not data_path:
        raise DataError(
            f"DATA.DATA_PATH: is not set; give --data-path, the folder that holds {layout.images.partition('/')[0]}/ and "
            f"{layout.masks.partition('/')[0]}/"
        )
    with waiting(timeout):
        return MaskSource(Path(data_path), split, layout, classes, decode)


def _files(folder: Path) -> Iterator[str]:
    """Paths relative to the folder, at any depth; links to folders are followed no further."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; check DATA.DATA_PATH (--data-path), DATA.TRAIN_SPLIT and DATA.VAL_SPLIT"
        )
    reading(str(folder))
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in files:
            yield os.path.relpath(os.path.join(place, name), folder)


def _only_listed(keys: Sequence[str], path: Path, images: Path) -> list[str]:
    """The images that a split's file names, in its order."""
    try:
        names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise DataError(f"{path}: cannot be read ({reason}); it lists the split's images, one a line") from error
    by_name = {os.path.splitext(key)[0]: key for key in keys}
    missing: Optional[str] = next((name for name in names if name not in by_name), None)
    if missing is not None:
        raise DataError(f"{path}: names {missing!r}, which is not in {images}; add the image, or take out the line")
    return [by_name[name] for name in names]


def _mask_of(key: str, layout: Layout) -> str:
    stem = os.path.splitext(key)[0]
    return stem.removesuffix(layout.image_end) + layout.mask_end + MASK_SUFFIX
