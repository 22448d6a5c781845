"""A source whose classes have the labels of a model that knows others, or the same ones by other names."""

from typing import Any, Iterator, Sequence

from utils.rng import fingerprint

from .source import AnySource, Source, StreamSource


def relabelled(source: AnySource, labels: Sequence[int], classes: Sequence[str]) -> AnySource:
    """A source with other labels; see `RelabelledSource`."""
    if isinstance(source, StreamSource):
        return RelabelledShards(source, labels, classes)
    return RelabelledSource(source, labels, classes)


class RelabelledSource:
    """The images of an indexed source with other labels.

    Args:
        source: see `data.sources`.
        labels: the new label of each of its classes, in its label order.
        classes: the names of all new labels.
    """

    def __init__(self, source: Source, labels: Sequence[int], classes: Sequence[str]):
        self.source = source
        self.labels = list(labels)
        self.classes = list(classes)
        self.notes: Sequence[str] = getattr(source, "notes", [])
        self.fingerprint = fingerprint([source.fingerprint.encode(), repr(self.labels).encode()])

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def load(self, index: int) -> tuple[Any, int]:
        image, label = self.source.load(index)
        return image, self.labels[label]


class RelabelledShards:
    """The images of a source that is read in streams with other labels; see `RelabelledSource`."""

    def __init__(self, source: StreamSource[Any], labels: Sequence[int], classes: Sequence[str]):
        self.source = source
        self.labels = list(labels)
        self.classes = list(classes)
        self.notes: Sequence[str] = getattr(source, "notes", [])
        self.fingerprint = fingerprint([source.fingerprint.encode(), repr(self.labels).encode()])
        self.shards = source.shards
        self.load = source.load

    def __len__(self) -> int:
        return len(self.source)

    def read(self, shard: int) -> Iterator[Any]:
        for stored in self.source.read(shard):
            yield stored._replace(label=self.labels[stored.label])
