"""A source of images with the transform that makes them tensors."""

from typing import Any, Callable, NamedTuple, Optional, Sequence

from torch.utils.data import Dataset, default_collate

from utils.errors import DataError
from utils.rng import derive_seed, seed_all

MAX_IN_A_ROW = 100  # images that can be unreadable one after the other before something else must be wrong


class SeededIndex(NamedTuple):
    """Which image, and the seed of its augmentation."""

    index: int
    seed: int


class Item(NamedTuple):
    """A sample, (image tensor (3, H, W), label), and what could not be read on the way to it."""

    sample: Optional[tuple[Any, int]]
    failures: tuple[str, ...] = ()


class ImageDataset(Dataset):
    """Samples of a source.

    Asked for a `SeededIndex`, it seeds all generators before the transform, so that an augmented image depends on
    nothing but its index and seed. Asked for a plain index, it is for transforms without randomness.

    Args:
        source: see `data.sources`.
        transform: RGB image -> tensor.
        on_error: what an image does that cannot be read. 'raise': end the run. 'skip': in training another image,
            drawn from the seed, takes its place; in evaluation there is no sample.
    """

    def __init__(self, source, transform: Callable, on_error: str = "raise"):
        self.source = source
        self.transform = transform
        self.on_error = on_error
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key) -> Item:
        """Raises DataError: the image cannot be read; with 'skip', neither can the many drawn in its place."""
        index, seed = key if isinstance(key, SeededIndex) else (key, None)
        failures: list[str] = []
        while True:
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
        if seed is not None:
            seed_all(seed)
        return Item((self.transform(image), label), tuple(failures))


def collate_items(items: Sequence[Item]) -> tuple[Any, list[str]]:
    """The batch of the items' samples, None if there are none, and all failures."""
    samples = [item.sample for item in items if item.sample is not None]
    return default_collate(samples) if samples else None, [text for item in items for text in item.failures]
