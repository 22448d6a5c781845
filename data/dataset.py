"""A source of images with the transform that makes them a model's pictures."""

from functools import partial
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional, Sequence

from torch.utils.data import Dataset, default_collate

from utils.errors import DataError
from utils.rng import derive_seed, seed_cpu

from .batches import Item
from .workers import reading

MAX_IN_A_ROW = 100  # images that can be unreadable one after the other before something else must be wrong


class SeededIndex(NamedTuple):
    """Which image, the seed of its augmentation, and the size it is wanted in."""

    index: int
    seed: int
    size: int = 0  # 0: the data set's own


class Samples:
    """A source with the transforms that make its images a model's.

    Args:
        source: see `data.sources`.
        transform: what the source gives -> `data.batches.Picture`, or several, its views.
        on_error: what an image does that cannot be read. 'raise': end the run. 'skip': in training another image,
            drawn from the seed, or the next one of a stream, takes its place; in evaluation there is no sample.
        sized: transforms by the sizes that a `SeededIndex` can ask for, in place of `transform`.
        collate_targets: what makes a batch of the samples' targets, see `data.batches.collate_items`.
    """

    def __init__(
        self,
        source,
        transform: Callable,
        on_error: str = "raise",
        sized: Optional[Mapping[int, Callable]] = None,
        collate_targets: Callable[[Sequence[Any]], Any] = default_collate,
    ):
        self.source = source
        self.transform = transform
        self.sized = sized or {}
        self.on_error = on_error
        self.collate_targets = collate_targets
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.source)


class ImageDataset(Samples, Dataset):
    """Samples of a source that is read by index.

    Asked for a `SeededIndex`, it seeds the CPU's generators before it reads the image, so that an augmented image
    depends on nothing but its index and seed. Asked for a plain index, it is for transforms without randomness.
    """

    def loads(self, count: int) -> Iterator[Callable[[], tuple[Any, int]]]:
        """So many of the images, not yet read, from all over the set: each gives (what the source gives, label)."""
        for i in range(count):
            index = i * len(self) // count
            reading(self.source.name(index))
            yield partial(self.source.load, index)

    def first(self, count: int, size: int = 0) -> list[Item]:
        """Some training samples, from all over the set; `size` as in `SeededIndex`."""
        return [self[SeededIndex(i * len(self) // count, i, size)] for i in range(count)]

    def __getitem__(self, key) -> Item:
        """Raises DataError: the image cannot be read; with 'skip', neither can the many drawn in its place."""
        index, seed, size = key if isinstance(key, SeededIndex) else (key, None, 0)
        transform = self.sized[size] if size else self.transform
        failures: list[str] = []
        while True:
            if seed is not None:
                seed_cpu(seed)
            reading(self.source.name(index))
            try:
                image, label = self.source.load(index)
                break
            except DataError as error:
                if self.on_error == "raise" or len(failures) == MAX_IN_A_ROW:
                    raise
                failures.append(str(error).rsplit("; ", 1)[0])
                if seed is None:
                    return Item(None, tuple(failures))
                index = derive_seed(seed, len(failures)) % len(self)
        key = "" if seed is not None else self.source.key(index)
        return Item((transform(image), label), tuple(failures), key)
