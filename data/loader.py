"""Batches of a data set, loaded by worker processes."""

import atexit
import multiprocessing
from typing import Any, Iterator, Sequence

from torch.utils.data import DataLoader, Dataset, Sampler

from utils.errors import UserError
from utils.signals import end_with_parent, ignore_stop_signals

from .batches import Batch, Finish, collate_items
from .prefetch import Prefetcher
from .samplers import EvalSampler, TrainBatchSampler


def _prepare_worker(_: int) -> None:
    ignore_stop_signals()
    end_with_parent()


@atexit.register
def _end_workers() -> None:
    """Workers ignore SIGTERM, with which Python ends those that are left when a process ends by an exception."""
    for process in multiprocessing.active_children():
        process.kill()


class Loader:
    """A DataLoader whose workers' errors stay one line long, and which notes the images that could not be read.

    Args:
        dataset: see `ImageDataset`.
        finish: what makes the workers' batches the model's, on its device.
        num_workers: loading processes; 0: this one loads.
        prefetch: batches that each of them loads ahead.
        pin_memory: whether batches lie in memory that a GPU can copy from while it computes.
        batching: more for the DataLoader: what makes a batch.
    """

    def __init__(self, dataset: Dataset, finish: Finish, num_workers: int, prefetch: int, pin_memory: bool, **batching: Any):
        self.num_images = len(dataset)
        self.finish = finish
        self.failures: list[str] = []
        self.loader = DataLoader(
            dataset,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            prefetch_factor=prefetch if num_workers else None,
            collate_fn=collate_items,
            worker_init_fn=_prepare_worker,
            multiprocessing_context="fork" if num_workers else None,  # see `end_with_parent`; Python 3.14 has another default
            **batching,
        )

    def __iter__(self) -> Prefetcher:
        """Finished batches, see `Finish`."""
        return Prefetcher(self.batches(), self.finish, self.finish.device)

    def batches(self) -> Iterator[Batch]:
        """The batches as the workers send them."""
        try:
            for batch, failures in self.loader:
                self.failures += failures
                if batch is not None:
                    yield batch
        except UserError as error:
            # A worker's error arrives with its traceback as text; the last line is `module.Class: message`.
            *traceback, last = str(error).splitlines()
            raise type(error)(last.split(": ", 1)[1] if traceback else last) from None

    def take_failures(self) -> list[str]:
        """What could not be read since the last call."""
        failures, self.failures = self.failures, []
        return failures

    def __len__(self) -> int:
        return len(self.loader)


class TrainLoader(Loader):
    """Shuffled, augmented batches; see `TrainBatchSampler`."""

    def __init__(
        self,
        dataset: Dataset,
        num_batches: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        finish: Finish,
        num_workers: int,
        prefetch: int,
        pin_memory: bool,
        repeats: int = 1,
        sizes: Sequence[tuple[int, int]] = (),
    ):
        self.sampler = TrainBatchSampler(len(dataset), num_batches, batch_size, rank, world_size, seed, repeats, sizes)
        super().__init__(dataset, finish, num_workers, prefetch, pin_memory, batch_sampler=self.sampler)

    def epoch(self, epoch: int, first_batch: int) -> Prefetcher:
        """The epoch's finished batches from `first_batch` on."""
        self.sampler.set_position(epoch, first_batch)
        return iter(self)

    def images_of(self, epoch: int, first_batch: int, num_batches: int) -> list[dict[str, Any]]:
        """Which images the processes see in some micro-batches of an epoch, and with which seed of augmentation."""
        source, sampler, order = self.loader.dataset.source, self.sampler, self.sampler.order(epoch)
        return [
            {"batch": batch, "rank": rank, "image": source.name(key.index), "seed": key.seed}
            for batch in range(first_batch, first_batch + num_batches)
            for rank in range(sampler.world_size)
            for key in sampler.batch(order, epoch, batch, rank)
        ]


class EvalLoader(Loader):
    """Every image once over all processes, in order."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        rank: int,
        world_size: int,
        finish: Finish,
        num_workers: int,
        prefetch: int,
        pin_memory: bool,
    ):
        sampler: Sampler = EvalSampler(len(dataset), rank, world_size)
        super().__init__(dataset, finish, num_workers, prefetch, pin_memory, batch_size=batch_size, sampler=sampler)
