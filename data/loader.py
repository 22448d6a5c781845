"""Batches of a data set, loaded by worker processes."""

from typing import Any, Iterator

from torch.utils.data import DataLoader, Dataset, Sampler

from utils.errors import UserError

from .samplers import EvalSampler, TrainBatchSampler


class Loader:
    """A DataLoader whose workers' errors stay one line long."""

    def __init__(self, dataset: Dataset, num_workers: int, pin_memory: bool, **batching: Any):
        self.loader = DataLoader(
            dataset, num_workers=num_workers, pin_memory=pin_memory, persistent_workers=num_workers > 0, **batching
        )

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.loader
        except UserError as error:
            # A worker's error arrives with its traceback as text; the last line is `module.Class: message`.
            *traceback, last = str(error).splitlines()
            raise type(error)(last.split(": ", 1)[1] if traceback else last) from None

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
        num_workers: int,
        pin_memory: bool,
    ):
        self.sampler = TrainBatchSampler(len(dataset), num_batches, batch_size, rank, world_size, seed)
        super().__init__(dataset, num_workers, pin_memory, batch_sampler=self.sampler)

    def epoch(self, epoch: int, first_batch: int) -> Iterator[Any]:
        """The epoch's batches from `first_batch` on."""
        self.sampler.set_position(epoch, first_batch)
        return iter(self)


class EvalLoader(Loader):
    """Every image once over all processes, in order."""

    def __init__(
        self, dataset: Dataset, batch_size: int, rank: int, world_size: int, num_workers: int, pin_memory: bool
    ):
        sampler: Sampler = EvalSampler(len(dataset), rank, world_size)
        super().__init__(dataset, num_workers, pin_memory, batch_size=batch_size, sampler=sampler)
