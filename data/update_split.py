"""How the images of an update are divided among processes and micro-batches: TRAIN.TOTAL_BATCH_SIZE."""

from dataclasses import dataclass
from typing import NamedTuple, Sequence


class Part(NamedTuple):
    """Images of a micro-batch that are of one group."""

    group: int  # of the update's groups
    size: int  # images of that group, over all micro-batches
    rows: Sequence[int]  # which of them are here, ascending

    @property
    def is_whole(self) -> bool:
        return len(self.rows) == self.size


@dataclass(frozen=True)
class UpdateSplit:
    """An update's images in groups, which draw together, and in micro-batches, which are computed together.

    Groups depend on the update and `group_size` alone; of `batch_size` images they are the micro-batches of a single process. One
    share of mixup is drawn for a group, and image i of n is mixed with image n - 1 - i. So an update is the same for any number
    of processes.
    Micro-batches have as few images as `accumulation_steps` allow, all of them the same number, or `unit` more. Where they are
    not whole groups, pairs of images that are mixed with each other stay together.

    A place is an image's number in the update, group by group.
    """

    total: int  # images of an update, a multiple of `unit`
    batch_size: int  # the most images of a micro-batch, at least `unit`
    world_size: int
    unit: int = 1  # 2: images are mixed in pairs; 1: they are not
    group_size: int = 0  # the most images of a group, at least `unit`; 0: `batch_size`

    @property
    def units(self) -> int:
        return self.total // self.unit

    @property
    def units_of_batch(self) -> int:
        """The most that a micro-batch has."""
        return self.batch_size // self.unit

    @property
    def num_groups(self) -> int:
        return -(-self.units // ((self.group_size or self.batch_size) // self.unit))

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of each process in an update."""
        return -(-self.units // (self.units_of_batch * self.world_size))

    @property
    def num_batches(self) -> int:
        """Micro-batches of an update, of all processes."""
        return self.accumulation_steps * self.world_size

    @property
    def least(self) -> int:
        """Images of the smallest micro-batch."""
        return self.units // self.num_batches * self.unit

    @property
    def most(self) -> int:
        """Images of the largest micro-batch."""
        return -(-self.units // self.num_batches) * self.unit

    @property
    def keeps_groups(self) -> bool:
        """Whether each micro-batch is a whole group."""
        return self.num_batches == self.num_groups

    def count(self, batch: int, rank: int) -> int:
        """Images of a process' micro-batch of an update."""
        first, end = self._units_of(self._number(batch, rank), self.num_batches)
        return (end - first) * self.unit

    def parts(self, batch: int, rank: int) -> list[Part]:
        """A process' micro-batch of an update: the images of one group after the other."""
        first, end = self._units_of(self._number(batch, rank), self.num_batches)
        parts = []
        for group in range(self.num_groups):
            start, stop = self._units_of(group, self.num_groups)
            low, high = max(first, start) - start, min(end, stop) - start
            if low < high:
                size = (stop - start) * self.unit
                rows = [*range(low, high)]
                if self.unit == 2:
                    rows += range(size - high, size - low)  # those that they are mixed with
                parts.append(Part(group, size, rows))
        return parts

    def positions(self, batch: int, rank: int, repeats: int = 1) -> list[int]:
        """Which of an update's positions in the epoch's order a process' micro-batch of it takes.

        With `repeats` a group takes every `num_groups`-th, so that copies of an image are in different groups.
        """
        starts = [self._units_of(group, self.num_groups)[0] * self.unit for group in range(self.num_groups)]
        places = [starts[part.group] + row for part in self.parts(batch, rank) for row in part.rows]
        if repeats == 1:
            return places
        in_turns = sorted(range(self.total), key=lambda position: (position % self.num_groups, position))
        return [in_turns[place] for place in places]

    def positions_in_epoch(self, batch: int, rank: int, repeats: int = 1) -> list[int]:
        """The same of the epoch's order, which updates take in turn, for a micro-batch of the epoch."""
        update, batch = divmod(batch, self.accumulation_steps)
        return [update * self.total + place for place in self.positions(batch, rank, repeats)]

    def _number(self, batch: int, rank: int) -> int:
        return batch * self.world_size + rank

    def _units_of(self, number: int, parts: int) -> tuple[int, int]:
        """The first unit of one of equal parts of the update, and the first of the next."""
        return number * self.units // parts, (number + 1) * self.units // parts
