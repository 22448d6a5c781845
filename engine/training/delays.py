"""What keeps a training run waiting, noticed while it goes on."""

from dataclasses import dataclass

from ..checkpoints.progress import Window
from .slow_rank import SlowRank, Spent
from .waits import Waits


@dataclass(frozen=True)
class Delays:
    """Images that come late, and a process that comes late."""

    waits: Waits
    slow_rank: SlowRank

    def start_epoch(self) -> None:
        self.waits.start_epoch()
        self.slow_rank.start_epoch()

    def add(self, window: Window, seconds: float, updates: float) -> list[str]:
        """Counts a window of so many seconds and updates; returns what is to be said. All processes call this."""
        spent = Spent(seconds, window.wait, window.forward.seconds())
        warnings = [self.waits.add(window.wait, seconds), self.slow_rank.add(spent, updates)]
        return [warning for warning in warnings if warning]
