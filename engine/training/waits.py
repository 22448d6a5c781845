"""Notices in training that the model waits for images, and says what to change."""

from typing import Optional

SHARE = 0.2  # of an epoch's time, above which it is said
LEAST = 10.0  # seconds waited: a short epoch is not worth a line, nor is the workers' start


class Waits:
    """The time that an epoch has waited for images so far.

    Args:
        workers: DATA.NUM_WORKERS.
        backend: DATA.BACKEND.
        cores: processor cores that this process and its workers have.
    """

    def __init__(self, workers: int, backend: str, cores: int):
        self.workers = workers
        self.backend = backend
        self.cores = cores
        self.start_epoch()

    def start_epoch(self) -> None:
        self.waited = self.seconds = 0.0
        self.has_warned = False

    def add(self, waited: float, seconds: float) -> Optional[str]:
        """Counts seconds, and how many of them were waited; returns a warning, at most one in an epoch."""
        self.waited += waited
        self.seconds += seconds
        if self.has_warned or self.waited < LEAST or self.waited <= SHARE * self.seconds:
            return None
        self.has_warned = True
        return f"{self.waited / self.seconds:.0%} of this epoch's time so far was spent waiting for images; {self._advice()}"

    def _advice(self) -> str:
        advice = []
        if self.workers < self.cores:
            advice.append(f"raise DATA.NUM_WORKERS, which is {self.workers}, as {self.cores} cores are there for it")
        if self.backend == "pil":
            advice.append("set DATA.BACKEND cv2, which needs about half the time for an image")
        if not advice:
            advice.append(
                f"DATA.NUM_WORKERS {self.workers} has all {self.cores} cores: use more cores, smaller files or a faster disk"
            )
        return f"{', or '.join(advice)}; --benchmark-data says where the time goes"
