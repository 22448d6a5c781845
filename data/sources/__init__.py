"""Where labelled images come from: one file per format.

An indexed source has `classes` (names, in label order), `len()`, `load(index) -> (image, label)`, `name(index)` for
messages, `key(index)`, which is `<class>/<file>` in each format of the same images, and a `fingerprint` that changes
when its images or their order do; it may have `notes`, lines to be said of it, such as what it leaves out. One that is read in streams has `shards`, `read(shard) -> samples` and
`image(sample)` instead, see `data.stream`. A new format is a new file and a line in `SOURCES`.
"""

import os
from typing import Any, BinaryIO, Callable, Mapping, Optional, Sequence

from utils.errors import ConfigError, did_you_mean
from utils.schema import FIXED

from ..class_order import CLASS_ORDERS, timm_map
from ..decode import decode_image
from ..workers import opening
from .cifar import CIFARSource
from .folder import FolderSource
from .hfds import HfdsSource
from .synthetic import SyntheticSource
from .tar import TarSource
from .wds import WdsSource
from .zip import ZipSource

SOURCES = {
    "imagenet": FolderSource,
    "folder": FolderSource,
    "zip": ZipSource,
    "tar": TarSource,
    "wds": WdsSource,
    "hfds": HfdsSource,
    "cifar10": CIFARSource,
    "cifar100": CIFARSource,
    "synthetic": SyntheticSource,
}


UNSEEN = ("hfds",)  # formats whose library does not say how far it is


def is_stream(source) -> bool:
    """Whether a source is read in streams, not by index."""
    return hasattr(source, "shards")


def keys_of(source) -> list[str]:
    """The keys of all images; shards are read for them."""
    if not is_stream(source):
        return [source.key(index) for index in range(len(source))]
    return [sample.key for shard in range(len(source.shards)) for sample in source.read(shard)]


def open_source(
    dataset: str,
    split: str,
    data_path: str,
    num_classes: int,
    num_images: int,
    decode: Callable[[BinaryIO], Any] = decode_image,
    outside_links: bool = False,
    class_to_idx: Optional[Mapping[str, int]] = None,
    columns: Sequence[str] = ("image", "label"),
    class_order: str = "torchvision",
    timeout: float = 0.0,
):
    """The images of one split.

    Args:
        dataset: a name in `SOURCES`, the config's DATA.DATASET; `<name>/<path>` adds a path to `data_path`.
        split: 'train', 'val', or another name of a split.
        data_path: where the data set lies.
        num_classes: of a synthetic set, and of one that does not say it.
        num_images: of a synthetic set.
        decode, outside_links, class_to_idx: see `FolderSource`.
        columns: see `HfdsSource` and `WdsSource`.
        class_order: one of `CLASS_ORDERS`; by which names the classes have their labels, without `class_to_idx` and where
            the data set does not name an order of its own.
        timeout: seconds without a further file or folder after which the wait is an error; 0: none.

    Raises:
        OutputError: after `timeout`.
        ConfigError: unknown `dataset` or `class_order`.
        DataError: the data set is missing or incomplete.
    """
    name, _, path = dataset.partition("/")
    if name not in SOURCES:
        raise ConfigError(f"DATA.DATASET is {dataset!r}; {did_you_mean(name, SOURCES)}")
    if class_order not in CLASS_ORDERS:
        raise ConfigError(f"DATA.CLASS_ORDER is {class_order!r}; {did_you_mean(class_order, CLASS_ORDERS)}")

    def opened(labels: Optional[Mapping[str, int]]):
        return SOURCES[name].open(
            dataset=name,
            split=split,
            data_path=os.path.join(data_path, path) if path else data_path,
            num_classes=num_classes,
            num_images=num_images,
            decode=decode,
            outside_links=outside_links,
            class_to_idx=labels,
            columns=columns,
        )

    with opening(0.0 if name in UNSEEN else timeout):
        source = opened(class_to_idx)
        if class_order == "timm" and class_to_idx is None and name not in FIXED:
            labels = timm_map(source.classes)
            if labels is not None:  # the names are known when the set has been read, which is why it is read again
                source = opened(labels)
    return source
