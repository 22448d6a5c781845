"""Where a process is in its work, for the others to see who is behind."""

import contextlib
import sys
import threading
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parents[2]


class Place:
    """A position that all processes reach in the same order: exchanges so far, then marks since the last one.

    `may_last`: what the process does takes as long as it takes, and has limits of its own, if any: its start, compiling,
    saving (the disk's speed), waiting for images (DATA.TIMEOUT). Meanwhile nobody is said to be behind.
    """

    def __init__(self):
        self.exchanges = 0
        self.marks = 0
        self.doing = "starts"
        self.may_last = True

    def mark(self, doing: str, may_last: bool = False) -> None:
        """Says what this process does from now on."""
        self.marks += 1
        self.doing, self.may_last = doing, may_last

    @contextlib.contextmanager
    def exchanging(self, doing: str) -> Iterator[None]:
        """The block waits for the other processes."""
        before = self.doing, self.may_last
        self.exchanges += 1
        self.marks = 0
        self.doing, self.may_last = f"{doing}, after: {self.doing}", False
        yield  # not restored after an error: this process is still there
        self.doing, self.may_last = before

    def position(self) -> list[int]:
        return [self.exchanges, self.marks]


def current_line() -> str:
    """The file and line of this project that the main thread is at, '' if at none."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main) if main else None
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        ours = path.is_relative_to(ROOT) and "site-packages" not in path.parts
        if ours and path.parent.name != "processes":
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
