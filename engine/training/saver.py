"""When a training run is saved, and saving it."""

import time

from utils.run_log import RunLog

from ..checkpoints.progress import Progress
from ..checkpoints.store import BEST, LAST, Checkpointer


class Saver:
    """Saves a run after each epoch, and within one after so many updates or minutes; 0: not for these.

    Args:
        progress: where the run stands.
        rank: of this process: the first one's clock counts, and it writes.
        every_epochs: after so many a file stays that nothing replaces.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        log: RunLog,
        progress: Progress,
        rank: int,
        every_epochs: int,
        every_steps: int,
        every_minutes: float,
    ):
        self.checkpointer = checkpointer
        self.log = log
        self.progress = progress
        self.rank = rank
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.start_clock()

    def start_clock(self) -> None:
        self.saved_at, self.asked = time.monotonic(), False

    def is_due(self) -> bool:
        """Once when the minutes have passed since the last save."""
        if self.rank or not self.every_minutes or self.asked:
            return False
        self.asked = time.monotonic() - self.saved_at >= 60 * self.every_minutes
        return self.asked

    def is_step(self, steps: int) -> bool:
        """Whether so many updates of an epoch are a time to save."""
        return self.every_steps > 0 and steps % self.every_steps == 0

    def save(self, *names: str) -> None:
        self.start_clock()
        if self.log.enabled:
            self.log.flush()  # a resumed run repeats no update before this
            self.checkpointer.save(*names)

    def save_epoch(self, improved: bool) -> None:
        """Saves the beginning of an epoch; `improved` says whether the one before it was the best so far."""
        names = [BEST] if improved else []
        if self.every_epochs and self.progress.epoch % self.every_epochs == 0:
            names.append(f"epoch_{self.progress.epoch}.pth")
        self.save(*names, LAST)
