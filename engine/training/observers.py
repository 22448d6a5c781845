"""What a run notes once, at its first update."""

import time
from typing import TYPE_CHECKING, Any

from ..observer import Observer

if TYPE_CHECKING:
    from .trainer import Trainer


class TrainBatchPicture(Observer):
    """Keeps a picture of a run's first batch, as the model gets it."""

    def __init__(self):
        self.is_there = False

    def on_batch(self, trainer: "Trainer", batch: Any) -> None:
        if trainer.progress.updates or self.is_there:
            return
        trainer.session.log.picture("train_batch", trainer.task.preview(batch, trainer.data.classes))
        self.is_there = True


class CompileTime(Observer):
    """Says how long the first update took, with which torch.compile works."""

    def __init__(self):
        self.started = 0.0
        self.is_said = False

    def before_update(self, trainer: "Trainer", step: int) -> None:
        self.started = time.perf_counter()

    def after_update(self, trainer: "Trainer", step: int) -> None:
        if not self.is_said:
            seconds = time.perf_counter() - self.started
            trainer.session.log.info(f"torch.compile: the first update took {seconds:.1f} s")
            self.is_said = True
