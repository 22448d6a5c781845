"""Batches of a data set, loaded by worker processes."""

import contextlib
import errno
import functools
import itertools
import os
import weakref
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional, Sequence, Union, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from utils.errors import DataError, ShortageError, one_line
from utils.image_size import FrozenSize
from utils.rng import derive_seed
from utils.signals import ignore_ended_children, requested_stop

from .batches import Batch, Finish, Item, collate_items
from .cache import can_be_cached
from .caught import Caught, CaughtDataset, CaughtStream
from .class_balance import labels_in
from .dataset import ImageDataset, SeededIndex
from .lanes import Lanes
from .patience import patience, stopped_while
from .prefetch import Prefetcher
from .sample import Sample
from .samplers import EvalSampler, TrainBatchSampler
from .schedule import Schedule
from .sources.source import AnySource, StreamSource
from .stream import EvalStream, StreamDataset, TrainStream
from .workers import Lines, describe_wait, end_workers, reading

AnyDataset = Union[ImageDataset, StreamDataset]


@dataclass(frozen=True)
class Loading:
    """How batches are loaded and come to the device."""

    finish: Finish  # makes the workers' batches the model's, on its device
    num_workers: int  # loading processes; 0: this one loads
    prefetch: int  # batches that each of them loads ahead
    pin_memory: bool  # whether batches lie in memory that a GPU can copy from while it computes
    timeout: float = 0.0  # seconds without a batch after which the wait is an error; 0: none


def _end_workers(loader: DataLoader, pid: int) -> None:
    """For a loader that nothing refers to any more, in the process that made it: its loading processes end."""
    if loader._iterator is not None and os.getpid() == pid:
        end_workers(loader._iterator)


class Loader:
    """A DataLoader whose workers' errors arrive as they are, and which notes the images that could not be read.

    Args:
        dataset: what the images are of, see `ImageDataset` and `StreamDataset`.
        loading: how.
        stream: what gives the samples, if not the data set's indices.
        batching: more for the DataLoader: what makes a batch.
    """

    def __init__(
        self, dataset: AnyDataset, loading: Loading, stream: Optional[IterableDataset] = None, **batching: Any
    ):
        self.dataset: AnyDataset = dataset
        self.timeout = loading.timeout
        self.lines = Lines(loading.num_workers)
        self.num_images = len(dataset)
        self.finish = loading.finish
        self.failures: list[str] = []
        self.loader = DataLoader(
            CaughtDataset(cast(ImageDataset, dataset)) if stream is None else CaughtStream(stream),
            num_workers=loading.num_workers,
            pin_memory=loading.pin_memory,
            persistent_workers=loading.num_workers > 0,
            prefetch_factor=loading.prefetch if loading.num_workers else None,
            collate_fn=functools.partial(_collate, dataset.collate),
            worker_init_fn=self.lines.prepare_worker,
            # it draws when its workers start; the run's own random numbers must not depend on that
            generator=torch.Generator(),
            # see `end_with_parent`; Python 3.14 has another default
            multiprocessing_context="fork" if loading.num_workers else None,
            **batching,
        )
        weakref.finalize(self, _end_workers, self.loader, os.getpid()).atexit = False

    def __iter__(self) -> Prefetcher:
        """Finished batches, see `Finish`."""
        return Prefetcher(self.batches(), self.finish, self.finish.device)

    def batches(self) -> Iterator[Batch]:
        """The batches as the workers send them.

        Raises:
            UserError: of a worker; or no batch comes, see `patience`; or the machine lacks what sending them needs.
        """
        if not self.loader.num_workers:
            self.lines.take(0)
        with self._explaining():
            with patience(self.timeout, self._describe_wait):
                received = iter(self.loader)
            while True:
                with patience(self.timeout, self._describe_wait):
                    batch, failures = next(received, (None, None))
                if isinstance(batch, Caught):
                    batch.raise_again()
                if failures is None:
                    return
                self.failures += failures
                if batch is not None:
                    yield batch

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Errors that a request to stop caused become that stop; of the DataLoader's own, those that a user can mend a line."""
        try:
            yield
        except DataError as error:
            if requested_stop():  # a command that fetches images was asked to end, too
                raise stopped_while(error.problem) from error
            raise
        except (RuntimeError, OSError, EOFError) as error:
            # Killed while it sent a batch, a loading process is not seen to have ended yet: torch's own error does not come.
            cut_off = isinstance(error, (ConnectionError, EOFError))
            if cut_off:
                ignore_ended_children()
            if requested_stop() and (
                cut_off or "DataLoader worker" in str(error)
            ):  # it came before the worker ignored it
                raise stopped_while("a loading process ended with it") from error
            shortage = self._shortage(error)
            if shortage is not None:
                raise shortage from error
            if cut_off:
                raise RuntimeError(f"DataLoader worker: its batch broke off, {type(error).__name__}") from error
            raise

    def first(self, count: int, size: FrozenSize = 0) -> list:
        """Some samples, read by this process; see the data set's `first`.

        Raises:
            UserError: as `batches`.
        """
        lines = Lines(0)
        lines.take(0)
        with patience(self.timeout, lambda: describe_wait(lines, [])):
            return self.dataset.first(count, size)

    def _describe_wait(self) -> tuple[str, str]:
        iterator = self.loader._iterator  # kept there, as the workers are persistent
        return describe_wait(self.lines, getattr(iterator, "_workers", []))

    def _shortage(self, error: Exception) -> Optional[ShortageError]:
        """What the machine lacks for the sending of batches, if that is what an error is about."""
        ended = next((line.removeprefix("ended: ") for line in self.lines.read() if line.startswith("ended: ")), "")
        text = f"{ended} {one_line(error)}"
        workers = f"DATA.NUM_WORKERS is {self.loader.num_workers}"
        again = "and start the same command again"
        if getattr(error, "errno", None) == errno.EMFILE or "Too many open files" in text:
            return ShortageError(
                f"{workers}: too many files are open; raise the limit (`ulimit -n`) or use fewer, {again}"
            )
        if "shared memory" in text or "/torch_" in text or "Bus error" in text:
            return ShortageError(
                f"{workers}: a loading process has no room in /dev/shm, which has {_shm_size()}; make it larger (docker run "
                f"--shm-size), use fewer or smaller batches, or DATA.NUM_WORKERS 0, {again}"
            )
        if ended:
            return ShortageError(
                f"{workers}: a loading process cannot send its batch ({ended[:200]}); correct that, or use 0, {again}"
            )
        return None

    def take_failures(self) -> list[str]:
        """What could not be read since the last call."""
        failures, self.failures = self.failures, []
        return failures

    def __len__(self) -> int:
        return len(self.loader)


class TrainLoader(Loader):
    """Shuffled, augmented batches; see `TrainBatchSampler`. A source may have `groups` of images that go together."""

    dataset: ImageDataset
    lanes = None  # the order of images by index is not one of streams

    def __init__(self, dataset: ImageDataset, schedule: Schedule, loading: Loading, shares: bool = False):
        self.schedule = schedule
        groups = getattr(dataset.source, "groups", None)
        labels = labels_in(dataset.source, "DATA.SAMPLING") if schedule.balanced else None
        self.sampler = TrainBatchSampler(len(dataset), schedule, shares, groups, labels)
        super().__init__(dataset, loading, batch_sampler=self.sampler)

    @property
    def order(self) -> str:
        """What the order of an epoch's images depends on, besides the seed."""
        order = self.dataset.source.fingerprint
        if self.sampler.shares:
            order += f" in {self.schedule.world_size} shares"
        if self.sampler.groups is not None:
            order += f" in groups of {self.schedule.together}"
        if self.schedule.balanced:
            order += " balanced by classes"
        return order

    def epoch(self, epoch: int, first_batch: int, lanes: Optional[Lanes] = None) -> Prefetcher:
        """The epoch's finished batches from `first_batch` on; images that are read by index have no `lanes`."""
        self.sampler.set_position(epoch, first_batch)
        return iter(self)

    def images_of(self, epoch: int, first_batch: int, num_batches: int) -> list[dict[str, Any]]:
        """Which images the processes see in some micro-batches of an epoch, and with which seed of augmentation."""
        source, sampler, order = self.dataset.source, self.sampler, self.sampler.order(epoch)
        return [
            {"batch": batch, "rank": rank, "image": source.name(key.index), "seed": key.seed}
            for batch in range(first_batch, first_batch + num_batches)
            for rank in range(self.schedule.world_size)
            for key in sampler.batch(order, epoch, batch, rank)
        ]


class EvalLoader(Loader):
    """Every image once over all processes, in order."""

    def __init__(self, dataset: ImageDataset, batch_size: int, rank: int, world_size: int, loading: Loading):
        sampler: Sampler = EvalSampler(len(dataset), rank, world_size)
        super().__init__(dataset, loading, batch_size=batch_size, sampler=sampler)


class TrainStreamLoader(Loader):
    """Augmented batches of shards; see `TrainStream`."""

    def __init__(self, dataset: StreamDataset, schedule: Schedule, loading: Loading, buffer: int):
        self.schedule = schedule
        self.stream = TrainStream(dataset, schedule, buffer)
        self.lanes = self.epoch_lanes = Lanes.of(schedule, max(loading.num_workers, 1))
        self.order = f"{dataset.source.fingerprint} among {buffer}"
        super().__init__(dataset, loading, stream=self.stream, batch_size=None)  # the stream gives whole micro-batches

    def epoch(self, epoch: int, first_batch: int, lanes: Optional[Lanes] = None) -> Prefetcher:
        """The epoch's finished batches from `first_batch` on.

        Args:
            lanes: with which the epoch began; None: those of the present processes.
        """
        self.epoch_lanes = lanes or self.lanes
        self.stream.set_position(epoch, first_batch, lanes)
        return iter(self)

    def images_of(self, epoch: int, first_batch: int, num_batches: int) -> list[dict[str, Any]]:
        """The micro-batches; which images they have is only known by reading the stream to there."""
        stream = f"{self.order} by {self.epoch_lanes}"
        return [{"batch": batch, "stream": stream} for batch in range(first_batch, first_batch + num_batches)]

    def __len__(self) -> int:
        return self.schedule.num_batches


class EvalStreamLoader(Loader):
    """Every image of the shards once over all processes; see `EvalStream`."""

    def __init__(self, dataset: StreamDataset, batch_size: int, rank: int, world_size: int, loading: Loading):
        self.num_batches = -(-len(dataset) // (batch_size * world_size))
        super().__init__(dataset, loading, stream=EvalStream(dataset, rank, world_size), batch_size=batch_size)

    def __len__(self) -> int:
        """About how many batches there are: shards may hold more images than others."""
        return self.num_batches


AnyTrainLoader = Union[TrainLoader, TrainStreamLoader]


def train_loader(
    dataset: AnyDataset, schedule: Schedule, loading: Loading, buffer: int, cache_mode: str
) -> AnyTrainLoader:
    """The loader for training of a data set of either kind.

    Args:
        schedule: of this process.
        loading: how.
        buffer: see `TrainStream`.
        cache_mode: see `data.cache`.
    """
    if isinstance(dataset, StreamDataset):
        return TrainStreamLoader(dataset, schedule, loading, buffer)
    return TrainLoader(dataset, schedule, loading, shares=order_is_of_processes(dataset, cache_mode))


def order_is_of_processes(dataset: AnyDataset, cache_mode: str) -> bool:
    """Whether the order of the training images depends on the number of processes, each of which has images of its own."""
    return cache_mode == "part" and can_be_cached(dataset.source)


def eval_loader(dataset: AnyDataset, batch_size: int, rank: int, world_size: int, loading: Loading) -> Loader:
    """The loader for evaluation of a data set of either kind."""
    if isinstance(dataset, StreamDataset):
        return EvalStreamLoader(dataset, batch_size, rank, world_size, loading)
    return EvalLoader(dataset, batch_size, rank, world_size, loading)


def endless_batches(dataset: AnyDataset, batch_size: int, seed: int, buffer: int, loading: Loading) -> Iterator[Batch]:
    """Training batches without an end, for measurements."""
    if isinstance(dataset, StreamDataset):
        return TrainStreamLoader(dataset, Schedule(10**9, batch_size, 0, 1, seed), loading, buffer).batches()

    def keys() -> Iterator[list[SeededIndex]]:
        for start in itertools.count(0, batch_size):
            yield [SeededIndex(i % len(dataset), derive_seed(seed, i)) for i in range(start, start + batch_size)]

    return Loader(dataset, loading, batch_sampler=keys()).batches()


def dataset_of(source: AnySource, *settings: Any, **more: Any) -> AnyDataset:
    """The samples of a source of either kind; the settings are those of `Samples`."""
    return (StreamDataset if isinstance(source, StreamSource) else ImageDataset)(source, *settings, **more)


def _collate(
    collate: Callable[[Sequence[Sample]], Batch], items: Union[Sequence[Union[Item, Caught]], Caught]
) -> tuple[Union[Batch, Caught, None], list[str]]:
    """`collate_items`, or the error of an item, or what a stream of batches gives in place of one; a loading process that has
    read its batch is not the one that others wait for.
    """
    if isinstance(items, Caught):
        items = [items]
    errors = [item for item in items if isinstance(item, Caught)]
    samples = [item for item in items if isinstance(item, Item)]
    batch, failures = (errors[0], []) if errors else collate_items(samples, collate)
    reading("")
    return batch, failures


def _shm_size() -> str:
    status = os.statvfs("/dev/shm")
    return f"{status.f_blocks * status.f_frsize / 2**20:.0f} MiB, {status.f_bavail * status.f_frsize / 2**20:.0f} of them free"
