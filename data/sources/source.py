"""What a source of images is. Both kinds are read by any number of processes at the same time."""

from typing import Any, Iterator, Protocol, Sequence, TypeVar, Union, runtime_checkable


class Source(Protocol):
    """Images that are read by index.

    It may have `notes`, lines to be said of it, such as what it leaves out; `groups`, a number of each image, such as whether
    it is high or wide, see `TrainBatchSampler`; `labels`, those of all images (N,), by which classes are weighed and drawn, see
    `data.class_balance`; with `read`, which gives an image's bytes, images are
    taken off by them for validation, see `data.sources.val_share`; with `sizes` and `cache` besides, its files can be held in
    memory, see `data.cache`.
    """

    @property
    def classes(self) -> Sequence[str]:
        """Names, in label order."""

    @property
    def fingerprint(self) -> str:
        """Changes when its images or their order do."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Any, Any]:
        """What `decode` makes of an image, and its target: a label, or what the task that reads it agrees on with its
        transform, such as a mask's path or a dictionary of boxes. Raises DataError: it cannot be read.
        """

    def key(self, index: int) -> str:
        """Which image it is: `<class>/<file>` in each format of the same images."""

    def name(self, index: int) -> str:
        """For messages."""


class Stored(Protocol):
    """An image of a shard, read but not decoded. More of it is the source's own."""

    @property
    def key(self) -> str:
        """As `Source.key`."""


StoredKind = TypeVar("StoredKind", bound=Stored)


@runtime_checkable
class StreamSource(Protocol[StoredKind]):
    """Images in shards that are read from the first byte to the last; see `data.stream`."""

    @property
    def classes(self) -> Sequence[str]:
        """Names, in label order."""

    @property
    def fingerprint(self) -> str:
        """Changes when its images or their order do."""

    @property
    def shards(self) -> Sequence[str]:
        """Files, or what else names them."""

    def __len__(self) -> int:
        """Images in all shards, as far as that is known."""

    def read(self, shard: int) -> Iterator[StoredKind]:
        """The images of a shard, in order. Raises DataError: it is damaged."""

    def load(self, stored: StoredKind) -> tuple[Any, Any]:
        """As `Source.load`."""


AnySource = Union[Source, StreamSource[Any]]  # of a stream whose images are known to it alone


class Format(Protocol):
    """A class of sources, as `data.sources.SOURCES` lists them."""

    def open(self, *args: Any, **known: Any) -> AnySource:
        """Takes by name what it needs of all that `data.sources.open_source` knows, and leaves the rest."""
