"""What an evaluation could not read, for scripts that name it at their end."""

from pathlib import Path

from utils.run_log import RunLog


class CollectingLog(RunLog):
    """A log on the console that keeps what could not be read.

    Args:
        enabled: whether it says anything.
    """

    def __init__(self, enabled: bool = True):
        super().__init__(Path(), enabled)
        self.unreadable: list[str] = []

    def list_unreadable(self, failures: list[str]) -> None:
        self.unreadable += failures
