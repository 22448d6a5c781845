"""Images in streams: shards that are read from the first byte to the last, in an order that a seed decides.

An epoch's readers are the loading processes of all ranks; reader c of n takes the shards c, c + n, ... of a permutation of
all, and mixes their images in a buffer. What it gives is a function of the seed, the epoch, c and n, so an epoch can be
gone on with at any batch, and by other processes (`data.lanes`): what was before is read again, but not decoded.
"""

import itertools
import random
from dataclasses import astuple, fields
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
from .lanes import Lanes
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
    """One process' micro-batches of an epoch, without an end to its shards: a reader that has read all of its own begins
    again, in another order.

    Args:
        dataset: whose images.
        schedule: of this process; copies of an image (`repeats`) come one after the other.
        buffer: images among which the next one is chosen, in each reader.
    """

    def __init__(self, dataset: StreamDataset, schedule: Schedule, buffer: int):
        self.dataset = dataset
        self.schedule = schedule
        self.buffer = buffer
        # Epoch, first micro-batch, and the lanes' numbers; shared, as the loading processes outlive epochs.
        self.position = torch.zeros(2 + len(fields(Lanes)), dtype=torch.int64).share_memory_()

    def set_position(self, epoch: int, first_batch: int, lanes: Optional[Lanes] = None) -> None:
        """The next iteration gives this epoch's micro-batches from `first_batch` on.

        Args:
            lanes: with which the epoch began; None: those of the present processes.
        """
        numbers = astuple(lanes) if lanes else [0] * len(fields(Lanes))
        self.position.copy_(torch.tensor([epoch, first_batch, *numbers]))

    def __iter__(self) -> Iterator[list[Item]]:
        """The micro-batches whose turn it is in this loading process."""
        worker, workers = place_of_worker()
        rank = self.schedule.rank
        epoch, first_batch, *numbers = self.position.tolist()
        own = Lanes.of(self.schedule, workers)
        lanes = Lanes(*numbers) if any(numbers) else own
        # The DataLoader takes batches from its workers in turn and begins with the first one, also in mid-epoch.
        turns = range(first_batch + worker, self.schedule.num_batches, workers)

        def is_wanted(position: int) -> bool:
            batch, of_rank = own.batch_of(position)
            return of_rank == rank and batch in turns

        opened: dict[int, LaneReader] = {}
        for batch in turns:
            items = []
            for position in own.positions(batch, rank):
                lane = lanes.lane_of(position)
                if lane not in opened:
                    samples = self.samples(epoch, lane, lanes.count)
                    opened[lane] = LaneReader(zip(lanes.filled_by(lane), samples), is_wanted)
                items.append(self._item(epoch, lane, opened[lane].read_from(position)))
            yield items

    def _item(self, epoch: int, lane: int, samples: Iterator[tuple[int, Any]]) -> Item:
        """The image of a place in a lane; for one that cannot be read the next one that can, with an augmentation of its own.

        Args:
            samples: the lane's, from this place on, with their places.

        Raises:
            DataError: it cannot be read, and `on_error` is 'raise'; or very many in a row cannot.
        """
        failures: tuple[str, ...] = ()
        size = self.schedule.size_at(epoch)
        distance = 0
        while True:
            place, sample = next(samples)
            seed = derive_seed(self.schedule.seed, epoch, lane, place, *([distance] if distance else []))
            item = self.dataset.item(sample, seed, size)
            if item.sample is not None:
                return item._replace(failures=failures)
            if distance == MAX_IN_A_ROW:
                raise DataError(f"{item.failures[0]}; nor can the {MAX_IN_A_ROW} before it")
            failures = failures or item.failures
            distance += 1

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


class LaneReader:
    """A lane that is read once, from its beginning on, and not decoded.

    Args:
        samples: the lane's, without an end, each with the position that it fills.
        is_wanted: whether a position will be asked for. Its sample waits until then: where micro-batches share the positions
            otherwise than the lanes do, a lane does not give them in the order in which they are asked for.
    """

    def __init__(self, samples: Iterator[tuple[int, Any]], is_wanted: Callable[[int], bool]):
        numbered = ((place, position, sample) for place, (position, sample) in enumerate(samples))
        (self.unread,) = itertools.tee(numbered, 1)
        self.is_wanted = is_wanted
        self.waiting: dict[int, Iterator[tuple[int, int, Any]]] = {}  # by position

    def read_from(self, position: int) -> Iterator[tuple[int, Any]]:
        """The samples from the one on that fills a position, with their places in the lane; asked for once."""
        while position not in self.waiting:
            # a copy: what is read by either is read once, and kept as long as one of them has it before it
            here, self.unread = itertools.tee(self.unread)
            _, found, _ = next(self.unread)
            if self.is_wanted(found):
                self.waiting[found] = here
        return ((place, sample) for place, _, sample in self.waiting.pop(position))


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
