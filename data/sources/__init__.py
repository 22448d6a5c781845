"""Where labelled images come from: one file per format.

Two kinds of sources are known, as `data.sources.source` describes them: one is read by index, the other in streams. A
new format is a new file and a line in `SOURCES`.
"""

import os
from dataclasses import dataclass
from typing import Any, BinaryIO, Callable, Mapping, Optional, Sequence, cast

from utils.errors import ConfigError, did_you_mean
from utils.schema import FORMATS_WITH_OWN_ORDER, LIST

from ..class_order import CLASS_ORDERS, timm_map
from ..decode import decode_image
from ..label_sets import LabelCells
from ..remote.shelf import Fetching
from ..workers import waiting
from .cifar import CIFARSource
from .folder import FolderSource
from .hfds import HfdsSource
from .lists import Listing, ListSource
from .source import AnySource, Format, StreamSource
from .synthetic import SyntheticSource
from .tar import TarSource
from .val_share import Divisible, ValShare, share_of
from .wds import WdsSource
from .zip import ZipSource

SOURCES: dict[str, Format] = {
    "imagenet": FolderSource,
    "folder": FolderSource,
    "zip": ZipSource,
    "tar": TarSource,
    "wds": WdsSource,
    "hfds": HfdsSource,
    LIST: ListSource,
    "cifar10": CIFARSource,
    "cifar100": CIFARSource,
    "synthetic": SyntheticSource,
}


WITHOUT_PROGRESS = ("hfds",)  # formats whose library does not say how far it is


def keys_of(source: AnySource) -> list[str]:
    """The keys of all images; shards are read for them."""
    if isinstance(source, StreamSource):
        return [sample.key for shard in range(len(source.shards)) for sample in source.read(shard)]
    return [source.key(index) for index in range(len(source))]


@dataclass(frozen=True)
class Opening:
    """What is to be known of a set besides its place, whatever its format; each format takes what it needs."""

    num_classes: int = 0  # of a synthetic set, and of one that does not say it; 0: not known
    num_images: int = 0  # of a synthetic set
    outside_links: bool = False  # see `FolderSource`
    class_to_idx: Optional[Mapping[str, int]] = None  # see `FolderSource`
    columns: Sequence[str] = ("image", "label")  # see `HfdsSource` and `WdsSource`
    # one of `CLASS_ORDERS`: by which names the classes have their labels, without `class_to_idx` and where the set does not
    # name an order of its own
    class_order: str = "torchvision"
    listing: Listing = Listing()  # of a list
    cells: Optional[LabelCells] = None  # of formats whose images may have several labels, or none; None: each has one
    share: Optional[ValShare] = None  # which part of the split's images is wanted; None: all
    fetching: Fetching = Fetching()  # how shards that lie elsewhere come here
    timeout: float = 0.0  # seconds without a further file or folder after which the wait is an error; 0: none


def open_source(
    dataset: str,
    split: str,
    data_path: str,
    decode: Callable[[BinaryIO], Any] = decode_image,
    opening: Opening = Opening(),
) -> AnySource:
    """The images of one split.

    Args:
        dataset: a name in `SOURCES`, the config's DATA.DATASET; `<name>/<path>` adds a path to `data_path`.
        split: 'train', 'val', or another name of a split.
        data_path: where the data set lies.
        decode: open file -> image.

    Raises:
        OutputError: after the timeout.
        ConfigError: unknown `dataset` or class order.
        DataError: the data set is missing or incomplete.
    """
    name, _, path = dataset.partition("/")
    if name not in SOURCES:
        raise ConfigError(f"DATA.DATASET is {dataset!r}; {did_you_mean(name, SOURCES)}")
    if opening.class_order not in CLASS_ORDERS:
        raise ConfigError(
            f"DATA.CLASS_ORDER is {opening.class_order!r}; {did_you_mean(opening.class_order, CLASS_ORDERS)}"
        )

    def opened(labels: Optional[Mapping[str, int]]) -> AnySource:
        return SOURCES[name].open(
            dataset=name,
            split=split,
            data_path=os.path.join(data_path, path) if path else data_path,
            num_classes=opening.num_classes,
            num_images=opening.num_images,
            decode=decode,
            outside_links=opening.outside_links,
            class_to_idx=labels,
            columns=opening.columns,
            class_order=opening.class_order,
            listing=opening.listing,
            cells=opening.cells,
            fetching=opening.fetching,
        )

    with waiting(0.0 if name in WITHOUT_PROGRESS else opening.timeout):
        source = opened(opening.class_to_idx)
        if (
            opening.class_order == "timm"
            and opening.class_to_idx is None
            and name not in (*FORMATS_WITH_OWN_ORDER, LIST)
        ):
            labels = timm_map(source.classes)
            if labels is not None:  # the names are known when the set has been read, which is why it is read again
                source = opened(labels)
        return share_of(cast(Divisible, source), opening.share) if opening.share else source
