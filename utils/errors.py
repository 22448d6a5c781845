"""Errors that a user can cause. `main.py` prints them as one line and exits with their status, without a traceback."""

import copy
import difflib
from typing import Iterable, Optional


class UserError(Exception):
    """An error with a message of one line, `<file, key or flag>: reason; what to do`.

    Whoever knows the command can say another remedy (`with_remedy`), or leave it out (`problem`); for that, an error that
    passes others on its way is made of its parts. Parts are kept when it is pickled.

    Args:
        where: the file, key or flag; or, without a reason, the whole message.
        reason: what is wrong there.
        remedy: what to do; '' where somebody else is to say it.
    """

    status = 2
    retry = False  # whether the same command, started again with nothing changed, may do what it could not this time
    speaker = 0  # the rank that says at once an error that all meet; the others wait for that

    def __init__(self, where: str, reason: str = "", remedy: str = ""):
        self.where, self.reason, self.remedy = where, reason, remedy
        super().__init__(f"{self.problem}; {remedy}" if remedy else self.problem)

    @property
    def problem(self) -> str:
        """The message without the remedy."""
        return f"{self.where}: {self.reason}" if self.reason else self.where

    def with_remedy(self, remedy: str) -> "UserError":
        """The same error with another remedy."""
        changed = copy.copy(self)
        UserError.__init__(changed, self.where, self.reason, remedy)
        return changed


class ConfigError(UserError):
    """A config file, key, flag or value that cannot be used."""


class ShortageError(ConfigError):
    """What this machine lacks at the moment: memory, a loading process, a connection."""

    retry = True


class DataError(UserError):
    """A data set that is missing, incomplete, or does not fit the config."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another model."""

    status = 3


class NonFiniteError(UserError):
    """A loss or gradient that is infinite or not a number."""

    status = 4


class OutputError(UserError):
    """A file that cannot be written, or not be read just now, or a folder that another run writes to."""

    status = 5
    retry = True


class ProcessError(UserError):
    """Another process of the run, `rank`, that is gone."""

    status = 5
    retry = True

    def __init__(self, message: str, rank: int = 0):
        super().__init__(message)
        self.rank = rank
        self.speaker = 1 if rank == 0 else 0


class Stopped(Exception):
    """A signal asked the run to end. Not an error: the same command goes on. A message, if there is one, is still to be said."""

    status = 128 + 15  # as a shell says of SIGTERM
    reason = ""  # the signal's name, where it is known
    together = True  # whether all processes of the run end at the same step


def one_line(error: object, most: Optional[int] = None) -> str:
    """What another library's exception says, as a part of a line, of `most` characters."""
    return " ".join(str(error).split())[:most]


def printable(text: object) -> str:
    """As one line: what is no printable character, as in a file's name, is written as Python writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `did you mean 'x'?` with the known name nearest to `name`, or `known: a, b, c` if none is near."""
    known = list(known)
    lowered = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f"did you mean {lowered[near[0]]!r}?"
    return f"known: {', '.join(known)}" if len(known) <= 30 else "no known name is near"
