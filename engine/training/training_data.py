"""The images of a run, and how many make an update."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional

from data.lanes import Lanes
from data.loader import AnyTrainLoader, Loader
from data.sources.val_share import write_split
from utils.image_size import FrozenSize

from ..checkpoints.progress import Progress
from .plan import BatchPlan


@dataclass(frozen=True)
class TrainingData:
    """This process' share of the images."""

    train_loader: AnyTrainLoader
    val_loader: Loader
    plan: BatchPlan
    classes: list[str]  # in label order
    batch_size: int  # DATA.BATCH_SIZE, or what `auto` stands for in this run

    def batches(self, epoch: int, step: int, lanes: Optional[Lanes] = None) -> Iterator[Any]:
        """An epoch's micro-batches from update `step` on; of shards, in the order of the lanes with which it began."""
        return self.train_loader.epoch(epoch, step * self.plan.accumulation_steps, lanes)

    def describe_lanes(self, progress: Progress) -> str:
        """What to say of an epoch of shards that is gone on with by other loading processes than began it; else ''."""
        lanes, own = progress.this_epoch.lanes, self.train_loader.lanes
        total = self.plan.total_batch_size
        positions = range(progress.step * total, self.plan.updates_per_epoch * total)
        if lanes is None or own is None or lanes == own or not positions:
            return ""
        opened, readers = lanes.shared_with(own, positions)
        streams = f"up to {opened} of their streams" if opened > 1 else "one of their streams"
        several = f", and a stream is read by up to {readers}" if readers > 1 else ""
        return (
            f"epoch {progress.epoch} keeps the order of the {lanes} that it began with: until it ends, each of {own} reads "
            f"{streams}{several}"
        )

    def img_size(self, epoch: int) -> FrozenSize:
        """px of an epoch's training images, where they change; else 0."""
        return self.train_loader.schedule.size_at(epoch)

    def images_of(self, epoch: int, step: int) -> list[dict[str, Any]]:
        """Which images, with which augmentation, an update has on all processes."""
        plan = self.plan
        return self.train_loader.images_of(epoch, step * plan.accumulation_steps, plan.batches_in_update(step))

    def write_split(self, path: Path) -> None:
        """Which images are trained on and which are not, where DATA.VAL_SHARE has divided them; else nothing."""
        write_split(path, self.train_loader.dataset.source, self.val_loader.dataset.source)
