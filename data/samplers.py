"""Which process sees which image when, as functions of the seed and the epoch."""

from typing import Iterator, Optional, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from utils.rng import derive_seed

from .class_balance import balanced_order
from .dataset import SeededIndex
from .schedule import Schedule


class TrainBatchSampler(Sampler):
    """Batches of one process for one epoch, shuffled.

    The epoch is one permutation of all images, the same for any number of processes. Micro-batch m takes its positions
    [m * world_size * batch_size, (m + 1) * world_size * batch_size), process r the r-th part of them. The images after
    the last micro-batch are left out, other ones in each epoch. With the schedule's `split`, update u takes the positions
    [u * total, (u + 1) * total), divided as `UpdateSplit` says.

    With `repeats`, each image of the permutation stands so many times in a row, each time with another augmentation, and
    the epoch ends after as many positions as before: it has a `repeats`-th of the images. Process r then takes every
    `world_size`-th position of a micro-batch, from the r-th on, so that copies go to different processes, as in DeiT's
    sampler (arXiv 2012.12877); the positions of a micro-batch do not depend on the number of processes.

    With `groups`, a process' micro-batch has images of one group, as far as there are enough: the permutation's images come
    in the order in which a group has a micro-batch full. The groups' last ones, which fill none, stand together at the end.

    Args:
        num_images: images in the data set.
        schedule: of this process.
        groups: of each image, such as whether it is wide or high; None: all are one. Not with `shares` or `repeats`.
        labels: of each image (N,): an epoch is drawn so that all classes are as frequent, see `balanced_order`; None: it is a
            permutation. Not with `shares`, `repeats` or `groups`.
        shares: process r has the images r, r + world_size, ... alone (see `data.cache`), not any of all.
    """

    def __init__(
        self,
        num_images: int,
        schedule: Schedule,
        shares: bool = False,
        groups: Optional[Sequence[int]] = None,
        labels: Optional[np.ndarray] = None,
    ):
        self.num_images = num_images
        self.schedule = schedule
        self.shares = shares
        self.groups = groups
        self.labels = None if labels is None else torch.as_tensor(labels)
        self.epoch = 0
        self.first_batch = 0

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """The next iteration gives this epoch's micro-batches from `first_batch` on."""
        self.epoch = epoch
        self.first_batch = first_batch

    def order(self, epoch: int) -> list[int]:
        """The permutation of all images that an epoch is, or what is drawn of them."""
        schedule = self.schedule
        generator = torch.Generator().manual_seed(derive_seed(schedule.seed, epoch))
        if self.labels is not None:
            return balanced_order(self.labels, generator).tolist()
        order = torch.randperm(self.num_images, generator=generator)
        if self.shares:
            each = schedule.num_batches * schedule.batch_size
            parts = [
                order[order % schedule.world_size == rank][:each].view(-1, schedule.batch_size)
                for rank in range(schedule.world_size)
            ]
            order = torch.stack(parts, dim=1).flatten()  # (num_batches, world_size, batch_size)
        if self.groups is not None:
            return in_groups(order.tolist(), self.groups, schedule.together)
        return order.tolist()

    def batch(self, order: list[int], epoch: int, batch: int, rank: int) -> list[SeededIndex]:
        """A process' images of a micro-batch."""
        seed, repeats = self.schedule.seed, self.schedule.repeats
        size = self.schedule.size_at(epoch)
        positions = self._positions(batch, rank)
        if repeats == 1:
            images = [(order[position], position) for position in positions]
            if self.labels is None:
                return [SeededIndex(index, derive_seed(seed, epoch, index), size) for index, _ in images]
            # an image may stand in an epoch more than once, each time with another augmentation
            return [SeededIndex(index, derive_seed(seed, epoch, index, place), size) for index, place in images]
        copies = [(order[position // repeats], position % repeats) for position in positions]
        return [SeededIndex(index, derive_seed(seed, epoch, index, copy), size) for index, copy in copies]

    def _positions(self, batch: int, rank: int) -> Sequence[int]:
        """What a process' micro-batch takes of the epoch's order."""
        batch_size, world_size, split = self.schedule.batch_size, self.schedule.world_size, self.schedule.split
        if split is not None:
            return split.positions_in_epoch(batch, rank, self.schedule.repeats)
        start = batch * world_size * batch_size
        if self.schedule.repeats == 1:
            return range(start + rank * batch_size, min(start + (rank + 1) * batch_size, self.num_images))
        return range(start + rank, start + world_size * batch_size, world_size)

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        epoch, order = self.epoch, self.order(self.epoch)
        for batch in range(self.first_batch, self.schedule.num_batches):
            yield self.batch(order, epoch, batch, self.schedule.rank)

    def __len__(self) -> int:
        """Micro-batches in a whole epoch."""
        return self.schedule.num_batches


def in_groups(order: Sequence[int], groups: Sequence[int], size: int) -> list[int]:
    """The same images so that each `size` in a row are of one group, but for the last ones of all groups."""
    waiting: dict[int, list[int]] = {}
    arranged: list[int] = []
    for index in order:
        group = waiting.setdefault(int(groups[index]), [])
        group.append(index)
        if len(group) == size:
            arranged += group
            group.clear()
    return arranged + [index for _, group in sorted(waiting.items()) for index in group]


class EvalSampler(Sampler):
    """Every `world_size`-th image, beginning with `rank`: each image once over all processes, none added."""

    def __init__(self, num_images: int, rank: int, world_size: int):
        self.indices = range(rank, num_images, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
