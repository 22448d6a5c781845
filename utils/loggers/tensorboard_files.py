"""TensorBoard's event files, in the run's folder tensorboard/."""

import contextlib
import threading
from typing import Iterator, Mapping

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from ..files import unwritable
from .logger import Logger


class TensorBoardFiles(Logger):
    writer: SummaryWriter  # from `open` on

    def open(self, last_update: int, epochs: int) -> None:
        """Raises OSError."""
        self.writer = SummaryWriter(self.directory / "tensorboard", purge_step=last_update + 1)

    def scalars(self, update: int, values: Mapping[str, float]) -> None:
        with self._writing():
            for name, value in values.items():
                self.writer.add_scalar(name, value, update)

    def picture(self, name: str, picture: np.ndarray) -> None:
        with self._writing():
            self.writer.add_image(name, picture, dataformats="HWC")

    def flush(self) -> None:
        with self._writing():
            self.writer.flush()

    def close(self) -> None:
        with self._writing():
            self.writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self.directory / "tensorboard", error) from error


def _quiet_writer_thread(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread gives its OSError to the next call; it need not print it too."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(args)


threading.excepthook = _quiet_writer_thread
