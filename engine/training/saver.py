"""When a training run is saved, and saving it."""

import contextlib
import time
from pathlib import Path
from typing import Any, Iterator, Optional

from utils.errors import CheckpointError
from utils.processes.peers import Peers
from utils.run_log import RunLog

from ..checkpoints.progress import Progress
from ..checkpoints.resume import fit_progress
from ..checkpoints.store import BEST, LAST, Checkpointer, checkpoints_of


class Saver:
    """Saves a run after each epoch, and within one after so many updates or minutes; 0: not for these.

    Args:
        progress: where the run stands.
        peers: the processes, of which the first one's clock counts, and which writes.
        every_epochs: after so many a file stays that nothing replaces.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        log: RunLog,
        progress: Progress,
        peers: Peers,
        every_epochs: int,
        every_steps: int,
        every_minutes: float,
    ):
        self.checkpointer = checkpointer
        self.log = log
        self.progress = progress
        self.peers = peers
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.start_clock()

    def start_clock(self) -> None:
        self.saved_at, self.asked = time.monotonic(), False

    def is_due(self) -> bool:
        """Once when the minutes have passed since the last save."""
        if self.peers.launch.rank or not self.every_minutes or self.asked:
            return False
        self.asked = time.monotonic() - self.saved_at >= 60 * self.every_minutes
        return self.asked

    def is_step(self, steps: int) -> bool:
        """Whether so many updates of an epoch are a time to save."""
        return self.every_steps > 0 and steps % self.every_steps == 0

    def names_after_epoch(self, improved: bool) -> list[str]:
        """The files to save at the beginning of an epoch; `improved` says whether the one before it was the best so far."""
        names = [BEST] if improved else []
        if self.every_epochs and self.progress.epoch % self.every_epochs == 0:
            names.append(f"epoch_{self.progress.epoch}.pth")
        return [*names, LAST]  # the last one counts: the run goes on from it

    def save(self, *names: str) -> None:
        """Begins to save: the present state is what the files will have. The first process writes them meanwhile, and each one its
        part of the optimizer's state, where that is shared out. All processes call this.

        Raises:
            OutputError: a file of the save before could not be written.
        """
        self.start_clock()
        self.wait()
        if self.log.enabled:
            self.log.flush()  # a resumed run repeats no update before this
        self.checkpointer.save(*(names if self.log.enabled else ()))

    def check(self) -> None:
        """Raises OutputError if a file could not be written; does not wait for one that is being written."""
        self.checkpointer.background.check()

    def wait(self) -> None:
        """Returns when what was saved is on the disk; raises OutputError if it cannot be written."""
        self.peers.at("saves", may_last=True)
        self.checkpointer.background.wait()

    @contextlib.contextmanager
    def until_written(self) -> Iterator[None]:
        """At the block's end, whatever ends it, what was saved in it is on the disk, or OutputError says why not. A second
        Ctrl-C ends at once.
        """
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException:
            self.checkpointer.background.wait()  # without a mark: where this process stands may say who is behind
            raise
        self.wait()

    def restore(self, checkpoint: dict[str, Any], path: Path) -> list[str]:
        """Gives the run the state of a checkpoint that every process has read from this path. Returns what has changed since in
        the run's data and updates, see `fit_progress`.

        Raises:
            CheckpointError: it does not fit the run, or the processes read different ones, as a file system's caches can
                make them.
            ConfigError: its place in the run does not fit.
        """
        self.checkpointer.restore(checkpoint, path)
        places = self.peers.gather([self.progress.epoch, self.progress.step, self.progress.updates])
        if any(place != places[0] for place in places):
            raise CheckpointError(f"{path}: is another one for some processes ({places}); start the same command again")
        return fit_progress(self.progress, checkpoint, self.checkpointer.metadata, path)

    def newest(self) -> Optional[Path]:
        """The run's newest checkpoint, as the first process sees it, for all, which call this; one that is being written is
        waited for.
        """
        self.wait()
        paths = checkpoints_of(self.checkpointer.directory)
        path = self.peers.from_first(str(paths[0]) if paths else "")
        return Path(path) if path else None
