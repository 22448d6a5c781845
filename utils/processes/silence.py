"""From signs of life to a verdict: which process is gone, and which one is behind."""

from typing import Optional

from ..errors import ProcessError
from .members import Beat, Members

FAREWELL = 10.0  # seconds that the others wait for the launcher after a process ended with an error
# Seconds without progress of any process after which those behind are named. An update takes seconds; what may last
# longer is left out (see place.py). It is a warning, not an end: the operation that waits ends after
# group.COLLECTIVE_TIMEOUT, and a machine that is only slow loses nothing by it.
NO_PROGRESS = 180.0


class Silence:
    """For how long each process has given no new sign of life.

    It is counted in rounds, not by the clock: after a stop and a continuation of all (Ctrl-Z and fg) nobody takes the
    others for dead.

    Args:
        timeout: seconds after which a silent process counts as gone.
    """

    def __init__(self, members: Members, timeout: float):
        self.members = members
        self.timeout = timeout
        self.last: dict[int, tuple[int, str]] = {}
        self.seconds: dict[int, float] = {}

    def lost(self, beats: dict[int, Beat], passed: float) -> Optional[ProcessError]:
        """The first process that is gone, `passed` seconds after the last look."""
        for rank, beat in beats.items():
            if beat.verdict:
                return ProcessError(beat.verdict[1], beat.verdict[0])
            same = self.last.get(rank) == (beat.number, beat.state)
            self.last[rank] = (beat.number, beat.state)
            self.seconds[rank] = self.seconds[rank] + passed if same else 0.0
            reason = self._reason(rank, beat)
            if reason:
                return self.members.error(rank, reason)
        return None

    def _reason(self, rank: int, beat: Beat) -> str:
        seconds = self.seconds[rank]
        if beat.state == "done":
            return ""
        if beat.state == "failed":
            return "it ended with an error of its own, see its line" if seconds > FAREWELL else ""
        if self.members.is_dead(rank):
            return "it was killed"
        if seconds > self.timeout:
            return f"no sign of life for {seconds:.0f} s, it is stopped or its machine is gone"
        return ""


class Progress:
    """For how long no process has got any further though all are alive, as when one hangs and the others wait for it."""

    def __init__(self, members: Members):
        self.members = members
        self.positions: dict[int, tuple[int, ...]] = {}
        self.seconds = 0.0
        self.behind = ""  # what was said of it

    def look(self, beats: dict[int, Beat], passed: float) -> str:
        """Who is behind, once when it has lasted; else ''."""
        positions = {rank: tuple(beat.position) for rank, beat in beats.items()}
        moved, self.positions = positions != self.positions, positions
        if moved or any(beat.may_last or beat.state != "running" for beat in beats.values()):
            self.seconds, self.behind = 0.0, ""
            return ""
        self.seconds += passed
        if self.behind or self.seconds < NO_PROGRESS:
            return ""
        self.behind = f"no progress for {self.seconds:.0f} s, though all processes live: {self._describe(beats)}"
        return self.behind

    def _describe(self, beats: dict[int, Beat]) -> str:
        first, last = min(self.positions.values()), max(self.positions.values())
        behind = [rank for rank, position in self.positions.items() if position == first]
        if first == last:
            return f"all are at the same place ({beats[behind[0]].doing})"
        shown = [f"{self.members.name(rank)} is behind, at: {beats[rank].doing}" for rank in behind[:4]]
        more = [f"{len(behind) - 4} more are behind"] if len(behind) > 4 else []
        ahead = next(beat.doing for rank, beat in beats.items() if self.positions[rank] == last)
        return ", ".join([*shown, *more, f"the first are at: {ahead}"])
