"""Where labelled images come from: one file per format.

A source has `classes` (names, in label order), `len()`, `load(index) -> (image, label)`, `name(index)` for messages,
and a `fingerprint` that changes when its images or their order do. A new format is a new file and a line in `SOURCES`.
"""

from typing import Any, BinaryIO, Callable

from utils.errors import ConfigError, did_you_mean

from ..decode import decode_image
from .cifar import CIFARSource
from .folder import FolderSource
from .synthetic import SyntheticSource

SOURCES = {
    "imagenet": FolderSource,
    "folder": FolderSource,
    "cifar10": CIFARSource,
    "cifar100": CIFARSource,
    "synthetic": SyntheticSource,
}


def open_source(
    dataset: str,
    split: str,
    data_path: str,
    num_classes: int,
    num_images: int,
    decode: Callable[[BinaryIO], Any] = decode_image,
    outside_links: bool = False,
):
    """The images of one split.

    Args:
        dataset: a name in `SOURCES`, the config's DATA.DATASET.
        split: 'train' or 'val'.
        data_path: where the data set lies.
        num_classes, num_images: size of a synthetic set; a real one has its own.
        decode, outside_links: see `FolderSource`.

    Raises:
        ConfigError: unknown `dataset`.
        DataError: the data set is missing or incomplete.
    """
    if dataset not in SOURCES:
        raise ConfigError(f"DATA.DATASET is {dataset!r}; {did_you_mean(dataset, SOURCES)}")
    return SOURCES[dataset].open(
        dataset=dataset,
        split=split,
        data_path=data_path,
        num_classes=num_classes,
        num_images=num_images,
        decode=decode,
        outside_links=outside_links,
    )
