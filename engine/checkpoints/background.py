"""Work that goes on in a thread beside the training."""

from threading import Thread
from typing import Callable, Optional


class Background:
    """One piece of work at a time. What it raises is raised by the next call of `start`, `check` or `wait`.

    The thread does not outlive the process: what must be done at its end is waited for.
    """

    def __init__(self, name: str):
        self.name = name
        self.thread: Optional[Thread] = None
        self.error: Optional[BaseException] = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins this work, once the one before is done."""
        self.wait()
        self.thread = Thread(target=self._run, args=(work,), name=self.name, daemon=True)
        self.thread.start()

    def check(self) -> None:
        """Raises what the work has raised, if it has ended; does not wait."""
        if self.thread and not self.thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Returns when the work is done."""
        if self.thread:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        if error:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # the training's thread raises it
            self.error = error
