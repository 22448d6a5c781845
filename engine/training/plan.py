"""How many images make an update, how many updates an epoch."""

import math
from dataclasses import dataclass
from typing import Optional

from data.update_split import UpdateSplit
from utils.errors import ConfigError, DataError

REFERENCE_BATCH = 512  # the config's learning rates are per so many images, as in Swin and FAT
LEAST = 2  # images of a micro-batch that BatchNorm can train on


@dataclass(frozen=True)
class BatchPlan:
    """Sizes of one run. An update is `accumulation_steps` micro-batches of `world_size` x `batch_size` images, or what
    `split` says, in which `batch_size` is the most that a micro-batch has.

    An epoch leaves out the images that fill no micro-batch; what remains after the last whole update makes a shorter
    one. With `whole_updates` it is left out too, so that any number of processes makes the same updates.
    """

    num_images: int
    batch_size: int
    world_size: int
    accumulation_steps: int
    whole_updates: bool = False
    lr_scaling: str = "linear"  # or 'sqrt'
    split: Optional[UpdateSplit] = None  # of each update, with `whole_updates`

    @property
    def total_batch_size(self) -> int:
        return self.split.total if self.split else self.batch_size * self.world_size * self.accumulation_steps

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches in an epoch."""
        if self.whole_updates:
            return self.num_images // self.total_batch_size * self.accumulation_steps
        return self.num_images // (self.batch_size * self.world_size)

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.batches_per_epoch // self.accumulation_steps)

    def batches_in_update(self, step: int) -> int:
        """Micro-batches of update `step` of an epoch; the last update may have fewer."""
        return min(self.accumulation_steps, self.batches_per_epoch - step * self.accumulation_steps)

    def images_in_update(self, step: int) -> int:
        """Images of update `step` of an epoch, of all processes."""
        return self.split.total if self.split else self.batches_in_update(step) * self.batch_size * self.world_size

    def images_in_batch(self, batch: int, rank: int) -> int:
        """Images of a process' micro-batch of an update."""
        return self.split.count(batch, rank) if self.split else self.batch_size

    def scale_lr(self, lr: float) -> float:
        """`lr` per 512 images -> for this global batch.

        'linear': Goyal et al. 2017 (arXiv 1706.02677), which LARS keeps to; 'sqrt': with the square root of the batch, as
        LAMB's LR grows (You et al. 2020, arXiv 1904.00962).
        """
        if self.lr_scaling == "sqrt":
            return lr * math.sqrt(self.total_batch_size / REFERENCE_BATCH)
        return lr * self.total_batch_size / REFERENCE_BATCH

    @property
    def sizes(self) -> str:
        """Images of a process' micro-batches."""
        if self.split and self.split.least < self.split.most:
            return f"{self.split.least} or {self.split.most}"
        return str(self.batch_size)

    @property
    def num_sizes(self) -> int:
        """How many numbers of images micro-batches have."""
        return 1 + bool(self.split and self.split.least < self.split.most)

    def describe(self) -> str:
        """The global batch and what it is made of."""
        product = f"{self.world_size} x {self.sizes} x {self.accumulation_steps} accumulated"
        return f"global batch {product} = {self.total_batch_size}"

    def notes(self, batch_size: int, compiled: bool) -> list[str]:
        """What is not as the config's `batch_size` says."""
        split = self.split
        if split is None or self.sizes == str(batch_size):
            return []
        weights = "; each image counts the same in the gradient" if split.least < split.most else ""
        layers = (
            "; torch.compile draws drop path and dropout anew for them" if compiled and not split.keeps_groups else ""
        )
        return [
            f"TRAIN.TOTAL_BATCH_SIZE {split.total} over {split.world_size} processes: micro-batches of {self.sizes} images, where "
            f"DATA.BATCH_SIZE is {batch_size}{weights}{layers}"
        ]


@dataclass(frozen=True)
class Sharing:
    """What dividing an update must heed."""

    pairs: bool = False  # images are mixed in pairs, which stay together
    # All micro-batches must have as many images, and each draws for itself: with DATA.CACHE_MODE part the processes' images are
    # their own.
    alike: bool = False
    group_size: int = 0  # images that draw together; 0: as many as a micro-batch has at most


def plan_batches(
    num_images: int,
    batch_size: int,
    world_size: int,
    accumulation_steps: int,
    total_batch_size: int,
    lr_scaling: str = "linear",
    sharing: Sharing = Sharing(),
) -> BatchPlan:
    """The plan of a run.

    Raises:
        ConfigError: as `split_update`, or an update needs more images than there are.
        DataError: fewer images than one micro-batch over all processes.
    """
    if total_batch_size:
        split = split_update(total_batch_size, accumulation_steps, batch_size, world_size, sharing)
        if num_images < total_batch_size:
            raise ConfigError(
                f"TRAIN.TOTAL_BATCH_SIZE: an update needs {total_batch_size} images, the data set has {num_images}; use a "
                "smaller TRAIN.TOTAL_BATCH_SIZE"
            )
        return BatchPlan(num_images, split.most, world_size, split.accumulation_steps, True, lr_scaling, split)
    plan = BatchPlan(num_images, batch_size, world_size, accumulation_steps, lr_scaling=lr_scaling)
    micro = batch_size * world_size
    if num_images < micro:
        raise DataError(
            f"DATA.BATCH_SIZE: {world_size} processes x batch {batch_size} need {micro} training images, the data set "
            f"has {num_images}; use a smaller --batch-size"
        )
    if num_images < plan.total_batch_size:
        raise ConfigError(
            f"TRAIN.ACCUMULATION_STEPS: an update of {accumulation_steps} micro-batches x {micro} needs {plan.total_batch_size} "
            f"images, the data set has {num_images} ({num_images // micro} micro-batches); use a smaller TRAIN.ACCUMULATION_STEPS"
        )
    return plan


def split_update(
    total_batch_size: int, accumulation_steps: int, batch_size: int, world_size: int, sharing: Sharing
) -> UpdateSplit:
    """TRAIN.TOTAL_BATCH_SIZE over these processes, in micro-batches of at most `batch_size` images.

    Args:
        accumulation_steps: must be 1, or what results.

    Raises:
        ConfigError: the total cannot be divided so.
    """
    key = f"TRAIN.TOTAL_BATCH_SIZE is {total_batch_size}"
    unit = 2 if sharing.pairs else 1
    if total_batch_size % unit:
        raise ConfigError(
            f"{key}, but mixup and cutmix mix pairs; use an even one, or set AUG.MIXUP and AUG.CUTMIX to 0"
        )
    split = UpdateSplit(total_batch_size, batch_size, world_size, unit, sharing.group_size)
    if split.least < LEAST:
        raise ConfigError(
            f"{key}, too few images for {world_size} processes, which need {LEAST * world_size}; use fewer processes, or another total"
        )
    if sharing.alike:
        split = _alike(split)
    if accumulation_steps not in (1, split.accumulation_steps):
        raise ConfigError(
            f"TRAIN.ACCUMULATION_STEPS (--accumulation-steps) is {accumulation_steps}, but TRAIN.TOTAL_BATCH_SIZE "
            f"{total_batch_size} needs {split.accumulation_steps} at {world_size} processes x batch {batch_size}; set only one of them"
        )
    return split


def _alike(split: UpdateSplit) -> UpdateSplit:
    """The same update in the largest micro-batches that all have as many images, each a group of its own.

    Raises:
        ConfigError: there are none.
    """
    total, world_size, unit = split.total, split.world_size, split.unit
    for batch_size in range(split.batch_size, LEAST - 1, -1):
        if batch_size % unit == 0 and total % (batch_size * world_size) == 0:
            return UpdateSplit(total, batch_size, world_size, unit)
    raise ConfigError(
        f"TRAIN.TOTAL_BATCH_SIZE is {total}, which {world_size} processes cannot share evenly, as DATA.CACHE_MODE part needs; "
        "change the number of processes, or the total"
    )
