"""A source of images with the transform that makes them a model's pictures."""

from functools import partial
from typing import Callable, Iterator, Mapping, NamedTuple, Optional, Sequence

from torch.utils.data import Dataset

from utils.errors import DataError
from utils.image_size import FrozenSize
from utils.rng import derive_seed, seed_cpu

from .batches import Batch, Item, collate_pictures
from .sample import Sample
from .sources.source import AnySource, Source
from .workers import reading

MAX_IN_A_ROW = 100  # images that can be unreadable one after the other before something else must be wrong


class SeededIndex(NamedTuple):
    """Which image, the seed of its augmentation, and the size it is wanted in."""

    index: int  # type: ignore[assignment]  # a tuple's method of that name is not used
    seed: int
    size: FrozenSize = 0  # 0: the data set's own


class Samples:
    """A source with the transforms that make its images a model's.

    Args:
        source: see `data.sources`.
        transform: `Sample` as the source gives it -> `Sample` as `collate` takes it. In training its random numbers are the
            global ones of Python, NumPy and torch (CPU), which are seeded for each image. A DataError of it is one of the image.
        on_error: what an image does that cannot be read. 'raise': end the run. 'skip': in training another image,
            drawn from the seed, or the next one of a stream, takes its place; in evaluation there is no sample.
        sized: transforms by the sizes that a `SeededIndex` can ask for, in place of `transform`.
        collate: what makes a batch of samples.
    """

    def __init__(
        self,
        source: AnySource,
        transform: Callable[[Sample], Sample],
        on_error: str = "raise",
        sized: Optional[Mapping[FrozenSize, Callable[[Sample], Sample]]] = None,
        collate: Callable[[Sequence[Sample]], Batch] = collate_pictures,
    ):
        self.source: AnySource = source
        self.transform = transform
        self.sized = sized or {}
        self.on_error = on_error
        self.collate = collate
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.source)

    def transform_to(self, size: FrozenSize) -> Callable[[Sample], Sample]:
        """The transform for a size, see `SeededIndex`."""
        return self.sized[size] if size else self.transform


class ImageDataset(Samples, Dataset):
    """Samples of a source that is read by index.

    Asked for a `SeededIndex`, it seeds the CPU's generators before it reads the image, so that an augmented image
    depends on nothing but its index and seed. Asked for a plain index, it is for transforms without randomness.
    """

    source: Source

    def read(self, index: int) -> Sample:
        """What the source has. Raises DataError: it cannot be read."""
        image, target = self.source.load(index)
        return Sample(image, target, self.source.key(index))

    def loads(self, count: int) -> Iterator[Callable[[], Sample]]:
        """So many of the images, not yet read, from all over the set: each gives what the source has."""
        for i in range(count):
            index = i * len(self) // count
            reading(self.source.name(index))
            yield partial(self.read, index)

    def first(self, count: int, size: FrozenSize = 0) -> list[Item]:
        """Some training samples, from all over the set; `size` as in `SeededIndex`."""
        return [self[SeededIndex(i * len(self) // count, i, size)] for i in range(count)]

    def __getitem__(self, key) -> Item:
        """Raises DataError: the image cannot be read; with 'skip', neither can the many drawn in its place."""
        index, seed, size = key if isinstance(key, SeededIndex) else (key, None, 0)
        transform = self.transform_to(size)
        failures: list[str] = []
        while True:
            if seed is not None:
                seed_cpu(seed)
            reading(self.source.name(index))
            try:
                return Item(transform(self.read(index)), tuple(failures))
            except DataError as error:
                if self.on_error == "raise" or len(failures) == MAX_IN_A_ROW:
                    raise
                failures.append(error.problem)
            if seed is None:
                return Item(None, tuple(failures))
            index = derive_seed(seed, len(failures)) % len(self)
