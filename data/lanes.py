"""Whose stream an image of shards comes from: the order of an epoch, which stays when the processes change within it."""

import functools
import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Optional, Sequence

from .schedule import Schedule
from .update_split import UpdateSplit


@dataclass(frozen=True)
class Lanes:
    """The streams of an epoch's loading processes, and the positions of the epoch's order that each fills.

    Each loading process reads a stream of its own, a lane, for the micro-batches whose turn it is (`TrainStream.samples`). What
    they read makes the epoch's order: position p has the image that the lane gives to the micro-batch which p belongs to.
    So the order depends on the processes, and an epoch keeps those with which it began: other ones, who share the positions
    otherwise, take each image from the lane that had it. Where nothing has changed, each takes all from its own.
    """

    world_size: int
    workers: int  # loading processes of each process, at least 1
    batch_size: int  # images of a process' micro-batch; with `total` the most
    # Images of an update, which `UpdateSplit` divides; 0: micro-batches take `batch_size` images in a row.
    total: int = 0
    unit: int = 1  # these two are the split's
    group_size: int = 0

    @classmethod
    def of(cls, schedule: Schedule, workers: int) -> "Lanes":
        """Those of the processes of a run."""
        split = schedule.split
        if split is None:
            return cls(schedule.world_size, workers, schedule.batch_size)
        return cls(schedule.world_size, workers, split.batch_size, split.total, split.unit, split.group_size)

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> "Lanes":
        """From a checkpoint. Raises TypeError or ValueError for what no run has."""
        lanes = cls(**state)
        numbers = (lanes.world_size, lanes.workers, lanes.batch_size, lanes.total + 1, lanes.unit, lanes.group_size + 1)
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError("no such lanes")
        if lanes.split and (lanes.batch_size < lanes.unit or not lanes.split.least):
            raise ValueError("no such lanes")
        return lanes

    @functools.cached_property
    def split(self) -> Optional[UpdateSplit]:
        if not self.total:
            return None
        return UpdateSplit(self.total, self.batch_size, self.world_size, self.unit, self.group_size)

    def positions(self, batch: int, rank: int) -> Sequence[int]:
        """What a process' micro-batch takes of the epoch's order, ascending in each group of images."""
        if self.split:
            return self.split.positions_in_epoch(batch, rank)
        start = (batch * self.world_size + rank) * self.batch_size
        return range(start, start + self.batch_size)

    def batch_of(self, position: int) -> tuple[int, int]:
        """Micro-batch and rank that take a position."""
        if self.split is None:
            return divmod(position // self.batch_size, self.world_size)
        update, place = divmod(position, self.total)
        batch, rank = batches_by_place(self.split)[place]
        return update * self.split.accumulation_steps + batch, rank

    def lane_of(self, position: int) -> int:
        """The lane that fills a position."""
        batch, rank = self.batch_of(position)
        return rank * self.workers + batch % self.workers

    def filled_by(self, lane: int) -> Iterator[int]:
        """The positions that a lane's samples fill, in their order, without an end."""
        rank, turn = divmod(lane, self.workers)
        for batch in itertools.count(turn, self.workers):
            yield from self.positions(batch, rank)

    @property
    def count(self) -> int:
        return self.world_size * self.workers

    @property
    def period(self) -> int:
        """Positions after which it is the same lanes' turn."""
        if self.split is None:
            return self.count * self.batch_size
        return self.total * self.workers // math.gcd(self.workers, self.split.accumulation_steps)

    def shared_with(self, others: "Lanes", positions: range) -> tuple[int, int]:
        """How many lanes a loading process of `others` reads at most for these positions, and how many read a lane at most."""
        turn = positions[: math.lcm(self.period, others.period)]
        pairs = {(self.lane_of(position), others.lane_of(position)) for position in turn}
        lanes, readers = (Counter(pair[side] for pair in pairs) for side in (1, 0))
        return max(lanes.values()), max(readers.values())

    def __str__(self) -> str:
        return f"{self.world_size} x {self.workers} loading processes"


@functools.lru_cache
def batches_by_place(split: UpdateSplit) -> list[tuple[int, int]]:
    """Micro-batch and rank that take each place of an update."""
    batches = [(batch, rank) for batch in range(split.accumulation_steps) for rank in range(split.world_size)]
    return [cell for _, cell in sorted((place, cell) for cell in batches for place in split.positions(*cell))]
