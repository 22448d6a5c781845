"""What is trained on when, as far as the config says it."""

from dataclasses import dataclass
from typing import Optional, Sequence

from utils.image_size import FrozenSize

from .update_split import UpdateSplit


@dataclass(frozen=True)
class Schedule:
    """The micro-batches of one process of a run.

    The images of each are a function of these values and the epoch, see `TrainBatchSampler` and `TrainStream`.
    """

    num_batches: int  # micro-batches in an epoch
    batch_size: int  # images per process and micro-batch; with `split` the most
    rank: int  # this process
    world_size: int  # how many there are
    seed: int  # of orders and augmentations
    repeats: int = 1  # how often an image stands in an epoch, each time with another augmentation
    sizes: Sequence[tuple[int, FrozenSize]] = ()  # (epoch, size), each from its epoch on; none: the data set's own
    balanced: bool = False  # whether all classes are as frequent, see `data.class_balance`
    # of each update; None: micro-batches of `batch_size` images, whatever an update is
    split: Optional[UpdateSplit] = None

    def size_at(self, epoch: int) -> FrozenSize:
        """Of an epoch's images; 0: the data set's own."""
        return next((size for first, size in reversed(self.sizes) if first <= epoch), 0)

    @property
    def together(self) -> int:
        """Images in a row that a micro-batch takes; not a matter of the number of processes where there is a `split`."""
        return (self.split.group_size or self.split.batch_size) if self.split else self.batch_size
