"""How many images make an update, how many updates an epoch."""

import math
from dataclasses import dataclass

from utils.errors import ConfigError, DataError

REFERENCE_BATCH = 512  # the config's learning rates are per so many images, as in Swin and FAT


@dataclass(frozen=True)
class BatchPlan:
    """Sizes of one run. An update is `accumulation_steps` micro-batches of `world_size` x `batch_size` images.

    An epoch leaves out the images that fill no micro-batch; what remains after the last whole update makes a shorter
    one. With `whole_updates` it is left out too, so that any number of processes makes the same updates.
    """

    num_images: int
    batch_size: int
    world_size: int
    accumulation_steps: int
    whole_updates: bool = False
    lr_scaling: str = "linear"  # or 'sqrt'

    @property
    def total_batch_size(self) -> int:
        return self.batch_size * self.world_size * self.accumulation_steps

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

    def scale_lr(self, lr: float) -> float:
        """`lr` per 512 images -> for this global batch.

        'linear': Goyal et al. 2017 (arXiv 1706.02677), which LARS keeps to; 'sqrt': with the square root of the batch, as
        LAMB's LR grows (You et al. 2020, arXiv 1904.00962).
        """
        if self.lr_scaling == "sqrt":
            return lr * math.sqrt(self.total_batch_size / REFERENCE_BATCH)
        return lr * self.total_batch_size / REFERENCE_BATCH


def accumulation_for(total_batch_size: int, accumulation_steps: int, batch_size: int, world_size: int) -> int:
    """Micro-batches per update: `accumulation_steps`, or what makes `total_batch_size` (0: not asked for).

    Raises:
        ConfigError: the total is not a multiple of a micro-batch, or the two contradict.
    """
    if not total_batch_size:
        return accumulation_steps
    micro = batch_size * world_size
    derived, remainder = divmod(total_batch_size, micro)
    if remainder or not derived:
        raise ConfigError(
            f"TRAIN.TOTAL_BATCH_SIZE is {total_batch_size}, no multiple of {world_size} processes x batch {batch_size} "
            f"= {micro}; change DATA.BATCH_SIZE (--batch-size) or the number of processes, or set the total to 0"
        )
    if accumulation_steps not in (1, derived):
        raise ConfigError(
            f"TRAIN.ACCUMULATION_STEPS (--accumulation-steps) is {accumulation_steps}, but TRAIN.TOTAL_BATCH_SIZE "
            f"{total_batch_size} needs {derived} at {world_size} processes x batch {batch_size}; set only one of them"
        )
    return derived


def plan_batches(
    num_images: int,
    batch_size: int,
    world_size: int,
    accumulation_steps: int,
    total_batch_size: int,
    lr_scaling: str = "linear",
) -> BatchPlan:
    """The plan of a run.

    Raises:
        ConfigError: as `accumulation_for`, or an update needs more images than there are.
        DataError: fewer images than one micro-batch over all processes.
    """
    steps = accumulation_for(total_batch_size, accumulation_steps, batch_size, world_size)
    plan = BatchPlan(num_images, batch_size, world_size, steps, total_batch_size > 0, lr_scaling)
    micro = batch_size * world_size
    if num_images < micro:
        raise DataError(
            f"DATA.BATCH_SIZE: {world_size} processes x batch {batch_size} need {micro} training images, the data set "
            f"has {num_images}; use a smaller --batch-size"
        )
    if num_images < plan.total_batch_size:
        key = "TRAIN.TOTAL_BATCH_SIZE" if total_batch_size else "TRAIN.ACCUMULATION_STEPS"
        raise ConfigError(
            f"{key}: an update of {steps} micro-batches x {micro} needs {plan.total_batch_size} images, the data set has "
            f"{num_images} ({num_images // micro} micro-batches); use a smaller {key}"
        )
    return plan
