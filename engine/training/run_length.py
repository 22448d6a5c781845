"""When a run ends: after its epochs, before that where nothing gets better, or after as many as a time allows."""

import math
import time
from typing import Optional

from utils.errors import ConfigError

from ..checkpoints.progress import Length, Progress

clock = time.monotonic
SOON = 0.05  # share of the time after which the pace is known well enough, though no epoch is done
UPDATES = 5  # that are measured at least then, not the first one of a start, in which much is made ready
SPARE = 0.03  # share of the time that stays free, as no two epochs take equally long


class RunLength:
    """How many epochs a run has, and at which place of the schedule each update is.

    With a time (TRAIN.MAX_HOURS) the number of epochs is chosen once, as soon as it is known how long one takes: at the end of
    the first that has been trained whole in one start, or in the middle of one where a twentieth of the time has gone by. From
    there on the schedule is gone through faster, so that its end is that of the run, whatever its form.

    Args:
        most: epochs at most, which the schedule is made for.
        patience: epochs without a better one after which the run ends; 0: none.
        max_hours: of training and evaluation, of all starts together; 0: any.
        progress: where the run stands, and what has been chosen.
        keeps_time: whether this is the process whose clock counts.
    """

    def __init__(self, most: int, patience: int, max_hours: float, progress: Progress, keeps_time: bool = True):
        self.most = most
        self.patience = patience
        self.max_hours = max_hours
        self.progress = progress
        self.keeps_time = keeps_time
        self.since = clock()  # what is not in `progress` yet
        self.whole_epoch = False
        self.first: Optional[float] = None  # when the first update of this start was done
        self.updates = 0  # since then

    @property
    def state(self) -> Length:
        return self.progress.length

    @property
    def epochs(self) -> int:
        """Of the whole run, as far as it is known."""
        return min(self.most, self.state.epochs or self.most)

    def ended_by(self, done: int) -> str:
        """Why the run ends once so many epochs are done; '' where it goes on."""
        if done >= self.most:
            return f"epoch {done} of TRAIN.EPOCHS {self.most}"
        if done >= self.epochs:
            return f"epoch {done} of {self.epochs}, as many as TRAIN.MAX_HOURS gave time for"
        if self.patience and self.state.stale >= self.patience:
            last = f"the last {self.state.stale}" if self.state.stale > 1 else "the last one"
            return f"no better epoch among {last} (TRAIN.PATIENCE {self.patience}; a larger one, or 0, goes on)"
        return ""

    def early(self, done: int) -> str:
        """As `ended_by`; '' where these are all of TRAIN.EPOCHS."""
        return self.ended_by(done) if done < self.most else ""

    def may_end(self, done: int) -> bool:
        """Whether the run may end with the epoch that makes them so many, as far as can be known before its evaluation."""
        return done >= self.epochs or 0 < self.patience <= self.state.stale + 1

    def place(self, epoch: int, step: int, updates_per_epoch: int) -> float:
        """Which update of a schedule over `most` epochs an update is."""
        update = epoch * updates_per_epoch + step
        if self.epochs == self.most:
            return update
        begin, position = self.state.decided_at, update / updates_per_epoch
        return (begin + (position - begin) * (self.most - begin) / (self.epochs - begin)) * updates_per_epoch

    def describe(self) -> str:
        """What to say of the time at a start; '' where there is none to keep to."""
        if self.state.epochs:
            used = f"{self.state.seconds / 3600:.2f} h are used"
            return f"TRAIN.MAX_HOURS: {self.epochs} epochs, as was chosen after {self.state.decided_at:.2f}; {used}"
        if self.max_hours:
            return (
                f"TRAIN.MAX_HOURS {self.max_hours}: how many epochs fit, of {self.most}, is said once the pace is known"
            )
        return ""

    # Time

    @property
    def is_open(self) -> bool:
        """Whether the number of epochs is still to be chosen."""
        return self.max_hours > 0 and not self.state.epochs

    def start_clock(self) -> None:
        """The run begins or goes on; what was before counts as far as the checkpoint says it."""
        self.since, self.first = clock(), None

    def start_epoch(self, step: int) -> None:
        self.whole_epoch = step == 0

    def note_time(self) -> None:
        """Puts the time so far into `progress`, before it is saved."""
        if self.max_hours:
            now = clock()
            self.state.seconds += now - self.since
            self.since = now

    def is_due(self) -> bool:
        """After an update: whether the number of epochs is to be chosen before the epoch has ended."""
        if not self.is_open or not self.keeps_time:
            return False
        if self.first is None:
            self.first, self.updates = clock(), 0
            return False
        self.updates += 1
        self.note_time()
        return self.updates >= UPDATES and self.state.seconds >= SOON * 3600 * self.max_hours

    def seconds_per_update(self) -> float:
        """As measured since the first update of this start."""
        assert self.first is not None  # see `is_due`
        return (clock() - self.first) / self.updates

    def fitting(self, position: float, seconds_per_epoch: float) -> int:
        """How many epochs there is time for, of which `position` are done."""
        self.note_time()
        left = (1 - SPARE) * 3600 * self.max_hours - self.state.seconds
        return min(self.most, math.floor(position + max(left, 0) / seconds_per_epoch))

    def choose(self, epochs: int, position: float, seconds_per_epoch: float) -> str:
        """Fixes the number of epochs; returns what to say of it.

        Raises:
            ConfigError: the epoch under way cannot be finished.
        """
        takes = f"an epoch takes about {seconds_per_epoch:.1f} s"
        if epochs < position:
            raise ConfigError(
                "TRAIN.MAX_HOURS",
                f"{takes}, so that {self.max_hours} h end before epoch {math.ceil(position) - 1} does",
                "give it more time, or smaller epochs; the run is saved, and the same command with more goes on",
            )
        self.state.epochs, self.state.decided_at = epochs, position
        which = f"all {self.most}" if epochs == self.most else f"{epochs} of TRAIN.EPOCHS {self.most}"
        end = "" if epochs == self.most else ", and the schedule is gone through faster from here on, to its end"
        return f"TRAIN.MAX_HOURS {self.max_hours}: {takes}: {which} fit{end}"
