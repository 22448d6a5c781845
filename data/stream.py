"""Images in streams: shards that are read from the first byte to the last, in an order that a seed decides.

An epoch's readers are the loading processes of all ranks; reader c of n takes the shards c, c + n, ... of a permutation of
all, and mixes their images in a buffer. What it gives is a function of the seed, the epoch, c and n, so an epoch can be
gone on with at any batch: what was before is read again, but not decoded.
"""

import itertools
import random
from functools import partial
from typing import Any, Callable, Iterator, Optional

import torch
import webdataset
from torch.utils.data import IterableDataset, get_worker_info

from utils.errors import DataError
from utils.image_size import FrozenSize
from utils.rng import derive_seed, seed_cpu

from .batches import Item
from .dataset import MAX_IN_A_ROW, Samples
from .sample import Sample
from .schedule import Schedule
from .sources.source import Stored, StreamSource
from .workers import reading


class StreamDataset(Samples):
    """Samples of a source that is read in streams."""

    source: StreamSource[Any]

    def decoded(self, stored: Stored) -> Sample:
        """What the source has of a stored image. Raises DataError: it is none."""
        image, target = self.source.load(stored)
        return Sample(image, target, stored.key)

    def loads(self, count: int) -> Iterator[Callable[[], Sample]]:
        """So many of the images, read but not decoded: each gives what the source has."""
        shards = itertools.chain.from_iterable(map(self._read, range(len(self.source.shards))))
        for stored in itertools.islice(shards, count):
            yield partial(self.decoded, stored)

    def first(self, count: int, size: FrozenSize = 0) -> list[Item]:
        """Some training samples, of the first shard.

        Raises:
            DataError: none of them can be read.
        """
        items = [self.item(stored, seed, size) for seed, stored in enumerate(itertools.islice(self._read(0), count))]
        good = [item for item in items if item.sample is not None]
        if not good:
            reason = f"none of its first {count} images can be read"
            raise DataError(self.source.shards[0], reason, "make the shard anew")
        return good

    def _read(self, shard: int) -> Iterator[Any]:
        reading(self.source.shards[shard])
        return self.source.read(shard)

    def item(self, stored: Stored, seed: Optional[int] = None, size: FrozenSize = 0) -> Item:
        """A sample, transformed; see `ImageDataset.__getitem__`."""
        if seed is not None:
            seed_cpu(seed)
        try:
            return Item(self.transform_to(size)(self.decoded(stored)))
        except DataError as error:
            if self.on_error == "raise":
                raise
            return Item(None, (error.problem,))


class TrainStream(IterableDataset):
    """One process' images of an epoch, without an end to its shards: a reader that has read all of its own begins again,
    in another order.

    Args:
        dataset: whose images.
        schedule: of this process; copies of an image (`repeats`) come one after the other.
        buffer: images among which the next one is chosen, in each reader.
    """

    def __init__(self, dataset: StreamDataset, schedule: Schedule, buffer: int):
        self.dataset = dataset
        self.schedule = schedule
        self.buffer = buffer
        self.position = torch.zeros(2, dtype=torch.int64).share_memory_()  # epoch, first batch: workers outlive epochs

    def set_position(self, epoch: int, first_batch: int) -> None:
        """The next iteration gives this epoch's batches from `first_batch` on."""
        self.position.copy_(torch.tensor([epoch, first_batch]))

    def __iter__(self) -> Iterator[Item]:
        worker, workers = place_of_worker()
        schedule = self.schedule
        epoch, first_batch = self.position.tolist()
        size = schedule.size_at(epoch)
        # The DataLoader takes batches from its workers in turn and begins with the first one, also in mid-epoch.
        turn = (worker + first_batch) % workers
        done, all_batches = len(range(turn, first_batch, workers)), len(range(turn, schedule.num_batches, workers))
        reader = schedule.rank * workers + turn
        samples = self.samples(epoch, reader, schedule.world_size * workers)
        vacant: list[Item] = []  # places whose images could not be read
        for place in itertools.count():
            if place < done * schedule.batch_size:
                next(samples)  # read, as the buffer's order depends on it, but not decoded
                continue
            # after the last place the stream goes on only as far as an image for vacant places needs
            if place >= all_batches * schedule.batch_size and not vacant:
                return
            sample = next(samples)
            item = self.dataset.item(sample, derive_seed(schedule.seed, epoch, reader, place), size)
            if item.sample is None:
                if len(vacant) == MAX_IN_A_ROW:
                    raise DataError(f"{item.failures[0]}; nor can the {MAX_IN_A_ROW} before it")
                vacant.append(item)
                continue
            # one image that can be read takes all vacant places, each time with another augmentation
            for number, failed in enumerate(vacant, 1):
                again = self.dataset.item(sample, derive_seed(schedule.seed, epoch, reader, place, number), size)
                yield again._replace(failures=failed.failures)
            vacant = []
            if place < all_batches * schedule.batch_size:
                yield item

    def samples(self, epoch: int, reader: int, readers: int) -> Iterator[Any]:
        """The endless stream of one reader.

        Raises:
            DataError: its shards hold no images, however they are dealt.
        """
        source, seed = self.dataset.source, self.schedule.seed
        empty = 0
        for number in itertools.count():
            count = 0
            order = list(range(len(source.shards)))
            random.Random(derive_seed(seed, epoch, number)).shuffle(order)
            mixing = random.Random(derive_seed(seed, epoch, number, reader))
            mix = webdataset.shuffle(self.buffer, initial=self.buffer, rng=mixing)
            for count, sample in enumerate(mix(share(source, order, reader, readers)), 1):  # noqa: B007
                yield from itertools.repeat(sample, self.schedule.repeats)
            # a shard can have fewer images than readers in one deal, and none in another
            empty = 0 if count else empty + 1
            if empty == MAX_IN_A_ROW:
                shard = source.shards[order[reader % len(order)]]
                raise DataError(shard, f"holds no images for reader {reader}", "use fewer DATA.NUM_WORKERS")


class EvalStream(IterableDataset):
    """Every image once over the loading processes of all ranks."""

    def __init__(self, dataset: StreamDataset, rank: int, world_size: int):
        self.dataset = dataset
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Item]:
        worker, workers = place_of_worker()
        source = self.dataset.source
        reader, readers = self.rank * workers + worker, self.world_size * workers
        for sample in share(source, list(range(len(source.shards))), reader, readers):
            yield self.dataset.item(sample)


def place_of_worker() -> tuple[int, int]:
    """Which of how many loading processes this one is."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def share(source: StreamSource[Any], order: list[int], reader: int, readers: int) -> Iterator[Any]:
    """What a reader takes of the shards. Where there are more readers than shards, several read a shard, each of them
    every n-th image.
    """
    shards, together = order[reader::readers], 1
    if readers > len(order):
        shards = [order[reader % len(order)]]
        together = len(range(reader % len(order), readers, len(order)))
    for shard in shards:
        reading(source.shards[shard])
        for sample in itertools.islice(source.read(shard), reader // len(order) if together > 1 else 0, None, together):
            yield sample
            reading(source.shards[shard])  # again: a batch may have been sent meanwhile
