"""Which process sees which image when, as functions of the seed and the epoch."""

from typing import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from utils.rng import derive_seed

from .dataset import SeededIndex


def size_at(sizes: Sequence[tuple[int, int]], epoch: int) -> int:
    """Of an epoch's images, where (epoch, size) says it from its epoch on; 0: the data set's own."""
    return next((size for first, size in reversed(sizes) if first <= epoch), 0)


class TrainBatchSampler(Sampler):
    """Batches of one process for one epoch, shuffled.

    The epoch is one permutation of all images, the same for any number of processes. Micro-batch m takes its positions
    [m * world_size * batch_size, (m + 1) * world_size * batch_size), process r the r-th part of them. The images after
    the last micro-batch are left out, other ones in each epoch.

    With `repeats`, each image of the permutation stands so many times in a row, each time with another augmentation, and
    the epoch ends after as many positions as before: it has a `repeats`-th of the images. Process r then takes every
    `world_size`-th position of a micro-batch, from the r-th on, so that copies go to different processes, as in DeiT's
    sampler (arXiv 2012.12877); the positions of a micro-batch do not depend on the number of processes.

    Args:
        num_images: images in the data set.
        num_batches: micro-batches in an epoch.
        batch_size: images per process and micro-batch.
        rank, world_size: this process and how many there are.
        seed: of the permutations and augmentations.
        shares: process r has the images r, r + world_size, ... alone (see `data.cache`), not any of all.
        repeats: how often an image stands in an epoch.
        sizes: (epoch, size) of images, each from its epoch on; none: the data set's own.
    """

    def __init__(
        self,
        num_images: int,
        num_batches: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        shares: bool = False,
        repeats: int = 1,
        sizes: Sequence[tuple[int, int]] = (),
    ):
        self.num_images = num_images
        self.num_batches = num_batches
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.shares = shares
        self.repeats = repeats
        self.sizes = sizes
        self.epoch = 0
        self.first_batch = 0

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """The next iteration gives this epoch's micro-batches from `first_batch` on."""
        self.epoch = epoch
        self.first_batch = first_batch

    def order(self, epoch: int) -> list[int]:
        """The permutation of all images that an epoch is."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        order = torch.randperm(self.num_images, generator=generator)
        if self.shares:
            each = self.num_batches * self.batch_size
            parts = [
                order[order % self.world_size == rank][:each].view(-1, self.batch_size)
                for rank in range(self.world_size)
            ]
            order = torch.stack(parts, dim=1).flatten()  # (num_batches, world_size, batch_size)
        return order.tolist()

    def batch(self, order: list[int], epoch: int, batch: int, rank: int) -> list[SeededIndex]:
        """A process' images of a micro-batch."""
        size = size_at(self.sizes, epoch)
        if self.repeats == 1:
            start = (batch * self.world_size + rank) * self.batch_size
            images = order[start : start + self.batch_size]
            return [SeededIndex(index, derive_seed(self.seed, epoch, index), size) for index in images]
        start = batch * self.world_size * self.batch_size
        positions = range(start + rank, start + self.world_size * self.batch_size, self.world_size)
        places = [(order[position // self.repeats], position % self.repeats) for position in positions]
        return [SeededIndex(index, derive_seed(self.seed, epoch, index, copy), size) for index, copy in places]

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        epoch, order = self.epoch, self.order(self.epoch)
        for batch in range(self.first_batch, self.num_batches):
            yield self.batch(order, epoch, batch, self.rank)

    def __len__(self) -> int:
        """Micro-batches in a whole epoch."""
        return self.num_batches


class EvalSampler(Sampler):
    """Every `world_size`-th image, beginning with `rank`: each image once over all processes, none added."""

    def __init__(self, num_images: int, rank: int, world_size: int):
        self.indices = range(rank, num_images, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
